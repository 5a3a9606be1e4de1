"""DoRA: magnitude and direction of each row, adapted apart."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._method import Scaled, as_multiplier, clamped_rank, in_dtype


class DoRA(Scaled):
    """DoRA: weight-decomposed low-rank adaptation.

    Law: `W' = m * V / ||V||_row` with `V = W + (alpha / r) B A`; `m` starts as the row norms of
    `W`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out) + out` parameters train.

    The norm is a constant for differentiation (section 4.3 of the paper), in `merge` as well. It is
    computed from `W` at every call: a stored norm would be silently wrong once the base changes.
    A row of `W` that is zero has magnitude zero, and stays zero. Rows below 1e-19 (their squares
    vanish in float32) and updates that all but cancel `W` (`B A` beyond 0.99 of `-W`) lose
    precision in the norm, alike in the forward pass and in `merge`.

    Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. The paper
    norms columns of `(in, out)` matrices; these are the rows here.
    """

    adapter_fields = ("magnitude", "lora_A", "lora_B")
    variant = "dora"
    paper = "2402.09353"
    formula = "r (in + out) + out"

    base: eqx.Module
    magnitude: Float[Array, " out"]
    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        adapter_dtype: Any = None,
        multiplier: Any = None,
    ):
        W = self.matrix(base)
        outputs, inputs = W.shape
        self.base = base
        self.rank = r = clamped_rank(rank, outputs, inputs)
        self.alpha = alpha
        dtype = in_dtype(W, adapter_dtype)
        self.magnitude = jnp.sqrt(jnp.sum(W * W, axis=1)).astype(dtype)
        self.lora_A = jax.random.normal(key, (r, inputs), dtype) / math.sqrt(self.fan_in(W))
        self.lora_B = jnp.zeros((outputs, r), dtype)
        self.multiplier = as_multiplier(multiplier)

    @property
    def scaling(self) -> float:
        """The factor of the low-rank update."""
        return self.alpha / self.rank

    def row_factor(self, W: Float[Array, "out in"]) -> Float[Array, " out"]:
        """`m / ||V||_row`, the norm detached and without forming `B A`.

        `||V_i||^2 = ||W_i||^2 + 2s (B * W A^T)_i + s^2 (B (A A^T) * B)_i`, summed over `r`.
        """
        A, B = self.lora_A.astype(W.dtype), self.multiplied(self.lora_B).astype(W.dtype)
        s = self.scaling
        cross = jnp.sum(B * (W @ A.T), axis=1)
        update = jnp.sum((B @ (A @ A.T)) * B, axis=1)
        squared = jnp.sum(W * W, axis=1) + 2 * s * cross + s * s * update
        # Rounding may leave a row that is nearly zero with a negative square.
        norm = jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(squared, 0)))
        return self.magnitude.astype(W.dtype) / jnp.where(norm > 0, norm, 1)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        B, A = self.multiplied(self.lora_B).astype(W.dtype), self.lora_A.astype(W.dtype)
        return self.row_factor(W)[:, None] * (W + self.scaling * (B @ A))

    def forward(self, x: Any) -> Array:
        y = self.low_rank(x, self.lora_A, self.multiplied(self.lora_B), self.scaling)
        return self.scale_output(y, self.row_factor(self.matrix(self.base)))

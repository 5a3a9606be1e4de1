"""DoRA: magnitude and direction of each row, adapted apart."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._method import Scaled, adapter_dtype_for, as_multiplier


class DoRA(Scaled):
    """DoRA: weight-decomposed low-rank adaptation.

    Law: `W' = m * V / ||V||_row` with `V = W + (alpha / r) B A`; `m` starts as the row norms of
    `W`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out) + out` parameters train.

    The norm is a constant for differentiation (section 4.3 of the paper), in `merge` as well. It is
    computed from `W` at every call: a stored norm would be silently wrong once the base changes.
    A row of `W` that is zero has magnitude zero, and stays zero.

    `merge` takes the norm of `V` itself. The forward pass, which never forms `V`, computes it from
    the factors: where `B A` all but cancels a row of `W`, that norm is off by up to `2 e c^2` of
    itself, with `e` the rounding of the dtype (6e-8 in float32) and `c` the sum of the norms of the
    two parts over that of `V`: by 5e-3 if 0.99 of a row is cancelled. Rows below 1e-19 or above
    1e19, whose squares float32 cannot hold, give zeros there.

    Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353. The paper
    norms columns of `(in, out)` matrices; these are the rows here.
    """

    adapter_fields = ("magnitude", "lora_A", "lora_B")
    variant = "dora"
    paper = "2402.09353"
    bibtex = """
    @misc{liu2024dora,
      title = {{DoRA}: Weight-Decomposed Low-Rank Adaptation},
      author = {Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and
        Wang, Yu-Chiang Frank and Cheng, Kwang-Ting and Chen, Min-Hung},
      year = {2024},
      eprint = {2402.09353},
      archivePrefix = {arXiv},
    }
    """
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
        self.rank = r = min(rank, outputs, inputs)
        self.alpha = alpha
        dtype = adapter_dtype_for(W, adapter_dtype)
        self.magnitude = row_norms(W).astype(dtype)
        self.lora_A = jax.random.normal(key, (r, inputs), dtype) / math.sqrt(self.fan_in(W))
        self.lora_B = jnp.zeros((outputs, r), dtype)
        self.multiplier = as_multiplier(multiplier)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        B, A = self.multiplied(self.lora_B).astype(W.dtype), self.lora_A.astype(W.dtype)
        V = W + self.scaling * (B @ A)
        return self.row_factor(row_norms(V))[:, None] * V

    def forward(self, x: Any) -> Array:
        y = self.low_rank(x, self.lora_A, self.multiplied(self.lora_B), self.scaling)
        return self.scale_output(y, self.row_factor(self.factored_norms(self.matrix(self.base))))

    def row_factor(self, norms: Float[Array, " out"]) -> Float[Array, " out"]:
        """`m / ||V||_row`, the norm detached."""
        norms = jax.lax.stop_gradient(norms)
        return self.magnitude.astype(norms.dtype) / jnp.where(norms > 0, norms, 1)

    def factored_norms(self, W: Float[Array, "out in"]) -> Float[Array, " out"]:
        """`||V||_row` without forming `B A`.

        `||V_i||^2 = ||W_i||^2 + 2s (B * W A^T)_i + s^2 (B (A A^T) * B)_i`, summed over `r`.
        """
        A, B = self.lora_A.astype(W.dtype), self.multiplied(self.lora_B).astype(W.dtype)
        s = self.scaling
        cross = jnp.sum(B * (W @ A.T), axis=1)
        update = jnp.sum((B @ (A @ A.T)) * B, axis=1)
        squared = jnp.sum(W * W, axis=1) + 2 * s * cross + s * s * update
        # Rounding may leave a row that is nearly zero with a negative square.
        return jnp.sqrt(jnp.maximum(squared, 0))


def row_norms(V: Float[Array, "out in"]) -> Float[Array, " out"]:
    """The norm of each row, of whatever size: the squares of numbers beyond 1e19 would overflow in
    float32, and those of numbers below 1e-19 vanish.
    """
    largest = jnp.max(jnp.abs(V), axis=1)
    unit = jnp.where(largest > 0, largest, 1)
    scaled = V / unit[:, None]
    return unit * jnp.sqrt(jnp.sum(scaled * scaled, axis=1))

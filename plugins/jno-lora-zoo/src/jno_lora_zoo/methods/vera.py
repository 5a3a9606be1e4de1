"""VeRA: two trained vectors around random matrices that are never stored."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._method import Scaled, adapter_dtype_for, as_multiplier
from .._random import uniform_matrix


class VeRA(Scaled):
    """VeRA: vector-based random matrix adaptation.

    Law: `W' = W + (alpha / r) diag(b) B diag(d) A`. `A` `(r, in)` and `B` `(out, r)` are uniform
    with mean 0 and variances `1/in` and 1; they are drawn from `seed` at every use and are part of
    no tree and no checkpoint. `b` starts at 0 and `d` at 1; `out + r` parameters train. The rank is
    not clamped.

    Paper: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454. The
    paper shares one pair of matrices among all layers and starts `d` at 0.1; here each layer has a
    seed of its own, and `d` starts at 1. The paper has no scale: `alpha = rank` gives its factor of
    1, and the default `alpha = 1` a smaller update the higher the rank.
    """

    adapter_fields = ("b", "d")
    variant = "vera"
    paper = "2310.11454"
    bibtex = """
    @misc{kopiczko2023vera,
      title = {{VeRA}: Vector-based Random Matrix Adaptation},
      author = {Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.},
      year = {2023},
      eprint = {2310.11454},
      archivePrefix = {arXiv},
    }
    """
    formula = "out + r"

    base: eqx.Module
    b: Float[Array, " out"]
    d: Float[Array, " r"]
    # Four numbers from 0 to 255: small enough to survive a cast of the whole model to any floating
    # dtype. An array, not static, so that layers can be stacked and seeds differ without retracing.
    seed: Shaped[Array, "4"]
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
        self.base, self.rank, self.alpha = base, rank, alpha
        dtype = adapter_dtype_for(W, adapter_dtype)
        self.b = jnp.zeros(W.shape[0], dtype)
        self.d = jnp.ones(rank, dtype)
        self.seed = jax.random.bits(key, (4,), jnp.uint8)
        self.multiplier = as_multiplier(multiplier)

    def projections(self, W: Array) -> tuple[Float[Array, "r in"], Float[Array, "out r"]]:
        """The random matrices `A` and `B`, in the dtype of `W`."""
        outputs, inputs = W.shape
        A = uniform_matrix(self.seed, 0, (self.rank, inputs), 1 / self.fan_in(W), W.dtype)
        B = uniform_matrix(self.seed, 1, (outputs, self.rank), 1.0, W.dtype)
        return A, B

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        A, B = self.projections(W)
        b, d = self.multiplied(self.b).astype(W.dtype), self.d.astype(W.dtype)
        return W + self.scaling * (b[:, None] * (B @ (d[:, None] * A)))

    def low_rank_update(self) -> tuple[Array, Array]:
        A, B = self.projections(self.matrix(self.base))
        b, d = self.multiplied(self.b).astype(A.dtype), self.d.astype(A.dtype)
        return d[:, None] * A, self.scaling * b[:, None] * B

    def forward(self, x: Any) -> Array:
        if self.merges_factors:
            return self.low_rank(x, *self.low_rank_update(), 1.0)
        A, B = self.projections(self.matrix(self.base))
        # The layer's own product first: XLA keeps to the order, and holds less at once.
        y = self.product(x)
        h = self.scale_rank(self.down(x, A), self.d)
        return y + self.scale_output(self.up(h, B), self.scaling * self.multiplied(self.b))

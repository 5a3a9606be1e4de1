"""IA3: one trained factor per output."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._method import Method, adapter_dtype_for


class IA3(Method):
    """IA³: infused adapter by inhibiting and amplifying inner activations.

    Law: `W' = diag(scale) W`, `scale = 1`, the bias untouched. `out` parameters train. `rank` and
    `alpha` are ignored. A layer whose weight is zero stays zero.

    Paper: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning", arXiv:2205.05638. The paper scales keys, values and the inner activations
    of feed-forward blocks; choose those layers with `target=`.
    """

    adapter_fields = ("scale",)
    variant = "ia3"
    paper = "2205.05638"
    bibtex = """
    @misc{liu2022ia3,
      title = {Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
        In-Context Learning},
      author = {Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang,
        Tenghao and Bansal, Mohit and Raffel, Colin},
      year = {2022},
      eprint = {2205.05638},
      archivePrefix = {arXiv},
    }
    """
    formula = "out"

    base: eqx.Module
    scale: Float[Array, " out"]
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
    ):
        del key  # nothing is random
        W = self.matrix(base)
        self.base, self.rank, self.alpha = base, rank, alpha
        self.scale = jnp.ones(W.shape[0], adapter_dtype_for(W, adapter_dtype))

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        return self.scale.astype(W.dtype)[:, None] * W

    def forward(self, x: Any) -> Array:
        return self.scale_output(self.product(x), self.scale)

"""IA3: one trained factor per output."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, scaled
from .._method import Method


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
    family = "scale"
    paper = "2205.05638"
    formula = "out"
    scales_rows_only = True

    scale: Float[Array, " out"]

    @classmethod
    def effective_rank(cls, rank: int, outputs: int, inputs: int) -> int:
        return rank

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any) -> dict[str, Any]:
        return {"scale": jnp.ones(W.shape[0], dtype)}

    def law(self, W: Matrix) -> Matrix:
        return scaled(W, self.scale)

    def forward(self, x: Any) -> Array:
        return self.on_output(x, scaled, self.scale)

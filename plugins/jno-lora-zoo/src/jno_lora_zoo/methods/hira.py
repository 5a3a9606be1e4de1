"""HiRA: the weight times a low-rank matrix, entry by entry, as the update."""

from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype
from .._bibtex import cited
from .._random import low_rank_start
from .._scaled import Additive


class HiRA(Additive):
    """HiRA: Hadamard high-rank adaptation. Every entry of the weight is scaled by its own factor.

    Law: `W' = W ⊙ (1 + (alpha / r) B A)`, `A ~ N(0, 1/in)`, `B = 0`. `r(in + out)` parameters
    train. `r = min(rank, in, out)`. An entry of `W` that is zero stays zero.

    Paper: Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language
    Models", OpenReview:TwJrTz9cRS. The paper has no scale: `alpha = r` gives its factor
    of 1. With groups, a convolution has one `A` for all groups, where PEFT refuses.
    """

    adapter_fields = ("lora_A", "lora_B")
    variant = "hira"
    # The paper is on OpenReview; arXiv has none.
    about = cited(
        "TwJrTz9cRS",
        family="structured",
        formula="r (in + out)",
        cost="makes a matrix as large as the weight at every call: merge before decoding.",
    )

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        return low_rank_start(W, r, key, dtype, self.fan_in(W))

    def update(self, W: Matrix) -> Matrix:
        return W * (self.times_scale(self.lora_B.astype(W.dtype)) @ self.lora_A.astype(W.dtype))

    def column(self, shape: tuple[int, ...], i: Array) -> Float[Array, " out"]:
        w = self.matrix(self.base)[:, i]
        factors = self.times_scale(self.lora_B) @ in_compute_dtype(self.lora_A[:, i])
        return w * factors.astype(w.dtype)

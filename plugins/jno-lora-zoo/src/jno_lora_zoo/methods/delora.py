"""DeLoRA: train the directions and the strength of a low-rank update separately."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix, in_compute_dtype, row_norms, scaled
from .._bibtex import cited
from .._method import Method
from .._random import low_rank_start

_LEAST = 1e-4  # norm


class DeLoRA(Method):
    """DeLoRA: decoupled low-rank adaptation, an update of bounded size.

    Law: `W' = W + (strength / r) B diag(1 / (norm(a_i) norm(b_i))) A diag(norms)`, where `a_i` is a
    row of `A`, `b_i` a column of `B`, and `norms` are the norms of the columns of the initial `W`.
    A norm of `a_i` or `b_i` counts as 1e-4 at least. `strength` starts as `alpha` and trains, `A ~
    N(0, 1/in)`, `B = 0`. `r(in + out) + 1` parameters train. `r = min(rank, in, out)`.

    Only the directions of `a_i` and `b_i` matter, so that no learning rate makes the update larger
    than `strength`. PEFT's default is 15; a single step moves `B` from zero to its full effect.

    Paper: Bini et al., "Decoupling Angles and Strength in Low-rank Adaptation", arXiv:2503.18225.
    The paper starts `B` at random too and subtracts a frozen copy of the initial update. As in
    PEFT, `B` starts at zero, norms have a lower bound, and `norms` stay if the base changes.

    A column of zeros stays zero, and a layer of zeros never trains, because the norms scale the
    update.

    **Raises:** `ValueError` if `alpha` is 0: `strength`, `B` and every gradient would be zero.
    """

    adapter_fields = ("lora_A", "lora_B", "strength")
    variant = "delora"
    about = cited("2503.18225", family="low rank", formula="r (in + out) + 1")

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    strength: Float[Array, ""]
    norms: Float[Array, " in"]

    @classmethod
    def default_alpha(cls, rank: int) -> float:
        return 1.0

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        if self.alpha == 0:
            raise ValueError("with alpha 0 nothing would train: give another, such as 15")
        return {
            **low_rank_start(W, r, key, dtype, self.fan_in(W)),
            "strength": jnp.asarray(self.alpha, dtype),
            "norms": row_norms(W.T).astype(dtype),
        }

    def factors(self) -> tuple[Float[Array, "r in"], Float[Array, " r"], Float[Array, "out r"]]:
        """`A diag(norms)`, the factor of each direction, and `B`."""
        A, B = in_compute_dtype(self.lora_A), in_compute_dtype(self.lora_B)
        sizes = _norms(A, 1) * _norms(B, 0) * self.rank
        strength = jnp.broadcast_to(self.strength.astype(A.dtype), sizes.shape)
        return scaled(A.T, self.norms).T, strength / sizes, B

    def law(self, W: Matrix) -> Matrix:
        A, by, B = (array.astype(W.dtype) for array in self.factors())
        return W + B @ scaled(A, by)

    def low_rank_form(self) -> LowRankForm:
        A, by, B = self.factors()
        return LowRankForm(scaled(A, by), B)

    def forward(self, x: ArrayLike) -> Array:
        A, by, B = self.factors()
        return self.low_rank(x, A, B, between=lambda h: scaled(h, by))


def _norms(X: Float[Array, "_ _"], axis: int) -> Float[Array, " r"]:
    # Below the least norm the derivative is zero, while the derivative of a root would be infinite.
    return jnp.sqrt(jnp.maximum(jnp.sum(X * X, axis=axis), _LEAST**2))

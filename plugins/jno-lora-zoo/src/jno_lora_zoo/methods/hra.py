"""HRA: reflect the inputs a few times."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from .._arrays import Matrix, mixed
from .._bibtex import cited
from .._layer_kind import Update
from .._method import Method
from .._orthogonal import orthonormal, reflections


class HRA(Method):
    """HRA: Householder reflections of the layer's inputs, as many as the rank.

    Law: `W' = W H_1 H_2 ... H_r` with `H_i = I - 2 u_i u_i^T / (u_i^T u_i)`. `U` `(in, r)` has the
    vectors `u_i` as columns; `r in` parameters train. Each pair of neighbours starts equal, at
    random, and two equal reflections are the identity, without a rounding. An odd rank is therefore
    rounded up; it may exceed the layer's sizes. A vector of zeros reflects nothing. `alpha` is
    ignored.

    - `gram_schmidt`: makes the vectors orthonormal first, so that `W' = W (I - 2 U U^T)` (the
        paper's regulariser at infinity). Because such a product is never the identity, the adapted
        model does not start as the original. The array of that name only records the option.

    Paper: Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
    Reflection Adaptation", arXiv:2405.17484. The paper's penalty on vectors that are not orthogonal
    is left to the loss.

    A layer with one input does not change, because every reflection is `-1` and their number is
    even.

    **Raises:** `ValueError` for `gram_schmidt` with more vectors than inputs.
    """

    adapter_fields = ("U",)
    variant = "hra"
    has_alpha = False
    about = cited("2405.17484", family="rotation", formula="r in")

    U: Float[Array, "in r"]
    gram_schmidt: Float[Array, ""] | None

    @classmethod
    def effective_rank(cls, rank: int, outputs: int, inputs: int) -> int:
        return rank + rank % 2

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, gram_schmidt: bool = False
    ) -> dict[str, Array | None]:
        inputs = W.shape[1]
        if gram_schmidt and r > inputs:
            raise ValueError(
                f"{r} vectors cannot be orthonormal where there are {inputs} inputs: give a "
                "smaller rank, or leave out `gram_schmidt`"
            )
        if gram_schmidt:
            U = jax.random.normal(key, (inputs, r), dtype)
            return {"U": U, "gram_schmidt": jnp.ones(())}
        half = jax.random.normal(key, (inputs, r // 2), dtype)
        return {"U": jnp.repeat(half, 2, axis=1), "gram_schmidt": None}

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {"gram_schmidt": "gram_schmidt" in state}

    def factors(self, W: Matrix) -> tuple[Float[Array, "in r"], Float[Array, "in r"]]:
        """`L` and `R` of the product `I - L R^T`, in the dtype of `W`."""
        U = self.U.astype(W.dtype)
        return reflections(U if self.gram_schmidt is None else orthonormal(U))

    def law(self, W: Matrix) -> Matrix:
        L, R = self.factors(W)
        return W - (W @ L) @ R.T

    def low_rank_form(self) -> LowRankForm:
        W = self.matrix(self.base)
        L, R = self.factors(W)
        return LowRankForm(R.T, -(W @ L))

    def forward(self, x: ArrayLike) -> Array:
        if self.reads_features():
            L, R = self.factors(self.matrix(self.base))
            return self.product(x, before=lambda v: v - mixed(mixed(v, R.T), L))
        A, B, *_ = self.low_rank_form()
        return self.plus(x, Update(lambda: B @ A, column=lambda i: B @ A[:, i]))

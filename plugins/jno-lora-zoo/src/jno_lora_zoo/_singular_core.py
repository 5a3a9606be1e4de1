"""Methods that train a small matrix between singular factors of the weight."""

import abc
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LowRankForm

from ._arrays import Matrix, compute_dtype, in_compute_dtype, mixed
from ._method import Method
from ._svd import largest


class SingularCore(Method):
    """`W' = W + B R A`: `R` trains; `A = V_r^T` and `B = U_r S_r`, of the weight, are frozen."""

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    @abc.abstractmethod
    def core(self, dtype: Any) -> Float[Array, "r r"]:
        """`R`, with its scale, in this dtype."""

    def law(self, W: Matrix) -> Matrix:
        return W + self.lora_B.astype(W.dtype) @ self.core(W.dtype) @ self.lora_A.astype(W.dtype)

    def low_rank_form(self) -> LowRankForm:
        B = in_compute_dtype(self.lora_B)
        return LowRankForm(self.lora_A, B @ self.core(B.dtype))

    def forward(self, x: Any) -> Array:
        R = self.core(compute_dtype(self.lora_B))
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: mixed(h, R))


def singular_factors(
    W: Matrix, r: int, svd: str, key: PRNGKeyArray, dtype: Any
) -> dict[str, Array]:
    """The frozen factors, by field."""
    U, S, Vt = largest(W, r, svd, key)
    return {"lora_A": Vt.astype(dtype), "lora_B": (U * S[None, :]).astype(dtype)}

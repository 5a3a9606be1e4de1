"""LoRA-XS: a tiny trained matrix between frozen singular factors."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype, mixed
from .._scaled import Scaled
from .._svd import largest


class LoRAXS(Scaled):
    """LoRA-XS: only an `(r, r)` matrix trains, between the weight's own principal directions.

    Law: `W' = W + (alpha / r) B R A`, `A = V_r^T` and `B = U_r S_r` from the `r` largest singular
    triplets of `W` and frozen, `R = 0`. `r^2` parameters train.

    Paper: Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
    arXiv:2405.17604. The paper starts `R` from a narrow normal distribution; here it starts at 0,
    so that the adapted model equals the original exactly. A layer whose weight is zero stays zero.

    `svd` is `"exact"`, `"randomized"` or `"auto"`, the default: a random subspace for matrices that
    are large beside the rank.
    """

    adapter_fields = ("R",)
    variant = "lora-xs"
    family = "singular"
    paper = "2405.17604"
    formula = "r^2"

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    R: Float[Array, "r r"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any, *, svd: str = "auto"
    ) -> dict[str, Any]:
        U, S, Vt = largest(W, r, svd, key)
        B = (U * S[None, :]).astype(dtype)
        return {"lora_A": Vt.astype(dtype), "lora_B": B, "R": jnp.zeros((r, r), dtype)}

    def law(self, W: Matrix) -> Matrix:
        B, R, A = (array.astype(W.dtype) for array in (self.lora_B, self.R, self.lora_A))
        return W + B @ self.times_scale(R) @ A

    def low_rank_update(self) -> tuple[Array, Array]:
        return self.lora_A, in_compute_dtype(self.lora_B) @ self.times_scale(self.R)

    def forward(self, x: Any) -> Array:
        R = self.times_scale(self.R)
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: mixed(h, R))

"""TinyLoRA: a few trained numbers between frozen singular factors."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix, in_compute_dtype, mixed
from .._method import Method
from .._options import whole_number
from .._svd import largest


class TinyLoRA(Method):
    """TinyLoRA: LoRA-XS whose small matrix is a trained sum of `u` random ones.

    Law: `W' = W + B (sum_i v_i P_i) A`, `A = V_r^T` and `B = U_r S_r` from the `r` largest singular
    triplets of `W`, `P_i ~ N(0, 1/r)` of `(r, r)`, all frozen and saved, `v = 0`. `u` parameters
    train, 64 by default. `alpha` is ignored. `r = min(rank, in, out)`; the paper advises 2.

    Paper: Morris et al., "Learning to Reason in 13 Parameters", arXiv:2602.04118. The paper can
    share one `v` among layers; here each layer has its own. PEFT gives `sqrt(S_r)` to each factor
    instead of `S_r` to `B`. A layer whose weight is zero stays zero.

    **Arguments:**

    - `u`: how many numbers train.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as in LoRA-XS.

    **Raises:** `ValueError` unless `u` is a whole number of 1 or more.
    """

    adapter_fields = ("v",)
    variant = "tinylora"
    family = "singular"
    paper = "2602.04118"
    formula = "u"

    v: Float[Array, " u"]
    P: Float[Array, "u r r"]
    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any, *, u: Any = 64, svd: str = "auto"
    ) -> dict[str, Any]:
        u = whole_number(u, "u")
        for_svd, for_P = jax.random.split(key)
        U, S, Vt = largest(W, r, svd, for_svd)
        return {
            "v": jnp.zeros(u, dtype),
            "P": jax.random.normal(for_P, (u, r, r), dtype) / math.sqrt(r),
            "lora_A": Vt.astype(dtype),
            "lora_B": (U * S[None, :]).astype(dtype),
        }

    @property
    def R(self) -> Float[Array, "r r"]:
        """The matrix between the factors."""
        return jnp.tensordot(in_compute_dtype(self.v), in_compute_dtype(self.P), 1)

    def law(self, W: Matrix) -> Matrix:
        B, R, A = (array.astype(W.dtype) for array in (self.lora_B, self.R, self.lora_A))
        return W + B @ R @ A

    def low_rank_update(self) -> tuple[Array, Array]:
        return self.lora_A, in_compute_dtype(self.lora_B) @ self.R

    def forward(self, x: Any) -> Array:
        R = self.R
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: mixed(h, R))

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        """The options that a saved state implies."""
        return {"u": len(state["v"])}

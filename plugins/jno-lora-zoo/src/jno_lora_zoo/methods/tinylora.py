"""TinyLoRA: a few trained numbers between frozen singular factors."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._options import whole_number
from .._singular_core import SingularCore, singular_factors


class TinyLoRA(SingularCore):
    """TinyLoRA: LoRA-XS whose small matrix is a trained sum of `u` random ones.

    Law: `W' = W + B (sum_i v_i P_i) A`, `A = V_r^T` and `B = U_r S_r` from the `r` largest singular
    triplets of `W`, `P_i ~ N(0, 1/r)` of `(r, r)`, all frozen and saved, `v = 0`. `u` parameters
    train. `alpha` is ignored. `r = min(rank, in, out)`; the paper advises 2.

    - `u`: how many numbers train.
    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's.

    Paper: Morris et al., "Learning to Reason in 13 Parameters", arXiv:2602.04118. The paper can
    share one `v` among layers; here each layer has its own. PEFT gives `sqrt(S_r)` to each factor
    instead of `S_r` to `B`. A layer whose weight is zero stays zero.

    **Raises:** `ValueError` unless `u` is a whole number of 1 or more.
    """

    adapter_fields = ("v",)
    variant = "tinylora"
    has_alpha = False
    about = cited("2602.04118", family="singular", formula="u")

    v: Float[Array, " u"]
    P: Float[Array, "u r r"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any, *, u: Any = 64, svd: str = "auto"
    ) -> dict[str, Array]:
        u = whole_number(u, "u")
        for_svd, for_P = jax.random.split(key)
        return {
            "v": jnp.zeros(u, dtype),
            "P": jax.random.normal(for_P, (u, r, r), dtype) / math.sqrt(r),
            **singular_factors(W, r, svd, for_svd, dtype),
        }

    def core(self, dtype: DTypeLike) -> Float[Array, "r r"]:
        return jnp.tensordot(self.v.astype(dtype), self.P.astype(dtype), 1)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, object]:
        return {"u": len(state["v"])}

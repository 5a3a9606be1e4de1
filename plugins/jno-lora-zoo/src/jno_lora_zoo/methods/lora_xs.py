"""LoRA-XS: a tiny trained matrix between frozen singular factors."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._scaled import Scaled
from .._singular_core import SingularCore, singular_factors


class LoRAXS(Scaled, SingularCore):
    """LoRA-XS: only an `(r, r)` matrix trains, between the weight's own principal directions.

    Law: `W' = W + (alpha / r) B R A`, `A = V_r^T` and `B = U_r S_r` from the `r` largest singular
    triplets of `W` and frozen, `R = 0`. `r^2` parameters train.

    - `svd`: `"exact"`, `"randomized"` or `"auto"`, as PiSSA's.

    Paper: Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
    arXiv:2405.17604. The paper starts `R` from a narrow normal distribution; here it starts at 0,
    so that the adapted model equals the original exactly. A layer whose weight is zero stays zero.
    """

    adapter_fields = ("R",)
    variant = "lora-xs"
    about = cited("2405.17604", family="singular", formula="r^2")

    R: Float[Array, "r r"]

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, svd: str = "auto"
    ) -> dict[str, Array]:
        return {**singular_factors(W, r, svd, key, dtype), "R": jnp.zeros((r, r), dtype)}

    def core(self, dtype: DTypeLike) -> Float[Array, "r r"]:
        return self.times_scale(self.R.astype(dtype))

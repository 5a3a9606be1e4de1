"""LoRA-XS: a tiny trained matrix between frozen singular factors."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._layer_kind import at_least_float32
from .._method import Scaled, adapter_dtype_for, as_multiplier
from .._svd import largest


class LoRAXS(Scaled):
    """LoRA-XS: only an `(r, r)` matrix trains, between the weight's own principal directions.

    Law: `W' = W + (alpha / r) B R A`, `A = V_r^T` and `B = U_r S_r` from the `r` largest singular
    triplets of `W` and frozen, `R = 0`. `r^2` parameters train.

    Paper: Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
    arXiv:2405.17604. The paper starts `R` from a narrow normal distribution; here it starts at 0,
    so that the adapted model equals the original exactly. A layer whose weight is zero stays zero.

    `svd="exact"` or `"randomized"` says how the triplets are found; `"auto"`, the default, takes a
    random subspace for matrices that are large beside the rank.
    """

    adapter_fields = ("R",)
    variant = "lora-xs"
    paper = "2405.17604"
    bibtex = r"""
    @misc{balazy2024loraxs,
      title = {{LoRA-XS}: Low-Rank Adaptation with Extremely Small Number of Parameters},
      author = {Ba{\l}azy, Klaudia and Banaei, Mohammadreza and Aberer, Karl and Tabor,
        Jacek},
      year = {2024},
      eprint = {2405.17604},
      archivePrefix = {arXiv},
    }
    """
    formula = "r^2"

    base: eqx.Module
    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    R: Float[Array, "r r"]
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
        svd: str = "auto",
        multiplier: Any = None,
    ):
        W = self.matrix(base)
        self.base = base
        self.rank = r = min(rank, *W.shape)
        self.alpha = alpha
        dtype = adapter_dtype_for(W, adapter_dtype)
        U, S, Vt = largest(W, r, svd, key)
        self.lora_A = Vt.astype(dtype)
        self.lora_B = (U * S[None, :]).astype(dtype)
        self.R = jnp.zeros((r, r), dtype)
        self.multiplier = as_multiplier(multiplier)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        factors = self.lora_B, self.multiplied(self.R), self.lora_A
        B, R, A = (array.astype(W.dtype) for array in factors)
        return W + self.scaling * (B @ R @ A)

    def low_rank_update(self) -> tuple[Array, Array]:
        return self.lora_A, self.scaling * self.multiplied(self.lora_B @ self.R)

    def forward(self, x: Any) -> Array:
        if self.merges_factors:
            B, R = at_least_float32(self.lora_B), at_least_float32(self.multiplied(self.R))
            return self.low_rank(x, self.lora_A, B @ R, self.scaling)
        h = self.mix(self.down(x, self.lora_A), self.multiplied(self.R))
        return self.product(x) + self.scaling * self.up(h, self.lora_B)

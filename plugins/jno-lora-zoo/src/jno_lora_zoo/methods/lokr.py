"""LoKr: a Kronecker product as the update."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._method import Scaled, adapter_dtype_for, as_multiplier


class LoKr(Scaled):
    """LoKr: an update of high rank from two small factors.

    Law: `W' = W + (alpha / r) crop(A ⊗ B)`, `A` `(r, r) ~ N(0, 1/r)`, `B` `(ceil(out/r),
    ceil(in/r))` `= 0`; where `r` does not divide, the product is cut to `(out, in)`.
    `r^2 + ceil(out/r) ceil(in/r)` parameters train.

    Papers: Edalati et al., "KronA", arXiv:2212.10650; Yeh et al., "Navigating Text-To-Image
    Customization: From LyCORIS Fine-Tuning to Model Evaluation", arXiv:2309.14859. `B` is kept
    whole, where LyCORIS may factor it further.
    """

    adapter_fields = ("kron_A", "kron_B")
    variant = "lokr"
    paper = "2309.14859"
    bibtex = """
    @misc{edalati2022krona,
      title = {{KronA}: Parameter Efficient Tuning with {Kronecker} Adapter},
      author = {Edalati, Ali and Tahaei, Marzieh and Kobyzev, Ivan and Partovi Nia, Vahid
        and Clark, James J. and Rezagholizadeh, Mehdi},
      year = {2022},
      eprint = {2212.10650},
      archivePrefix = {arXiv},
    }
    @misc{yeh2023lycoris,
      title = {Navigating Text-To-Image Customization: From {LyCORIS} Fine-Tuning to Model
        Evaluation},
      author = {Yeh, Shih-Ying and Hsieh, Yu-Guan and Gao, Zhidong and Yang, Bernard B. W.
        and Oh, Giyeong and Gong, Yanmin},
      year = {2023},
      eprint = {2309.14859},
      archivePrefix = {arXiv},
    }
    """
    formula = "r^2 + ceil(out / r) ceil(in / r)"

    base: eqx.Module
    kron_A: Float[Array, "r r"]
    kron_B: Float[Array, "p q"]
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
        multiplier: Any = None,
    ):
        W = self.matrix(base)
        outputs, inputs = W.shape
        self.base = base
        self.rank = r = min(rank, outputs, inputs)
        self.alpha = alpha
        dtype = adapter_dtype_for(W, adapter_dtype)
        self.kron_A = jax.random.normal(key, (r, r), dtype) / math.sqrt(r)
        self.kron_B = jnp.zeros((math.ceil(outputs / r), math.ceil(inputs / r)), dtype)
        self.multiplier = as_multiplier(multiplier)

    def law(self, W: Float[Array, "out in"]) -> Float[Array, "out in"]:
        outputs, inputs = W.shape
        update = jnp.kron(self.multiplied(self.kron_A).astype(W.dtype), self.kron_B.astype(W.dtype))
        return W + self.scaling * update[:outputs, :inputs]

    def has_fast_path(self) -> bool:
        return self.has_kronecker()

    def forward(self, x: Any) -> Array:
        return self.product(x) + self.scaling * self.kronecker(
            x, self.multiplied(self.kron_A), self.kron_B
        )

"""LoKr: a Kronecker product as the update."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import bibtex_of
from .._method import Scaled


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
    bibtex = bibtex_of("2212.10650", "2309.14859")
    formula = "r^2 + ceil(out / r) ceil(in / r)"

    kron_A: Float[Array, "r r"]
    kron_B: Float[Array, "p q"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: Any) -> dict[str, Any]:
        outputs, inputs = W.shape
        A = jax.random.normal(key, (r, r), dtype) / math.sqrt(r)
        return {"kron_A": A, "kron_B": jnp.zeros((-(-outputs // r), -(-inputs // r)), dtype)}

    def law(self, W: Matrix) -> Matrix:
        outputs, inputs = W.shape
        A = self.times_scale(self.kron_A.astype(W.dtype))
        return W + jnp.kron(A, self.kron_B.astype(W.dtype))[:outputs, :inputs]

    def forward(self, x: Any) -> Array:
        return self.kronecker(x, self.times_scale(self.kron_A), self.kron_B)

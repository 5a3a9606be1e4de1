"""LoKr: a Kronecker product as the update."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arrays import Matrix
from .._bibtex import cited
from .._scaled import Additive


class LoKr(Additive):
    """LoKr: an update of high rank from two small factors.

    Law: `W' = W + (alpha / r) crop(A ⊗ B)`, `A` `(r, r) ~ N(0, 1/r)`, `B`
    `(ceil(out/r), ceil(in/r))` `= 0`; the product is cut to `(out, in)` if `r` does not divide the
    sizes. `r^2 + ceil(out/r) ceil(in/r)` parameters train.

    Papers: Edalati et al., "KronA", arXiv:2212.10650; Yeh et al., "Navigating Text-To-Image
    Customization: From LyCORIS Fine-Tuning to Model Evaluation", arXiv:2309.14859. `B` is one
    matrix here, while LyCORIS can factor it further.
    """

    adapter_fields = ("kron_A", "kron_B")
    variant = "lokr"
    about = cited(
        "2309.14859", "2212.10650", family="structured", formula="r^2 + ceil(out / r) ceil(in / r)"
    )

    kron_A: Float[Array, "r r"]
    kron_B: Float[Array, "p q"]

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Array]:
        outputs, inputs = W.shape
        A = jax.random.normal(key, (r, r), dtype) / math.sqrt(r)
        return {"kron_A": A, "kron_B": jnp.zeros((-(-outputs // r), -(-inputs // r)), dtype)}

    def update(self, W: Matrix) -> Matrix:
        outputs, inputs = W.shape
        A = self.times_scale(self.kron_A.astype(W.dtype))
        return jnp.kron(A, self.kron_B.astype(W.dtype))[:outputs, :inputs]

    def times(self, shape: tuple[int, ...], v: Float[Array, " in"]) -> Float[Array, " out"]:
        # (A ⊗ B) vec(X) = vec(A X Bᵀ), with X the input in rows of length q.
        A, B = self.times_scale(self.kron_A).astype(v.dtype), self.kron_B.astype(v.dtype)
        X = jnp.pad(v, (0, len(A) * B.shape[1] - v.size)).reshape(len(A), -1)
        return ((X @ B.T).T @ A.T).T.reshape(-1)[: shape[0]]

    def column(self, shape: tuple[int, ...], i: Array) -> Float[Array, " out"]:
        # Column i of A ⊗ B is A[:, i // q] ⊗ B[:, i % q].
        q = self.kron_B.shape[1]
        outer = self.times_scale(self.kron_A[:, i // q])
        return jnp.outer(outer, self.kron_B[:, i % q].astype(outer.dtype)).reshape(-1)[: shape[0]]

"""PiSSA, MiLoRA and OLoRA: a low-rank part of the weight trains, and the base is the residual."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LoRAWrapper, LowRankForm

from .._arrays import Matrix
from .._bibtex import cited
from .._method import Method
from .._svd import Triplets, largest, smallest


class Split(Method):
    """`W = (W - s B0 A0) + s B0 A0`: the first term is frozen as `base`, the second term trains.

    From the stored initial factors, `unwrap` restores the original weight up to rounding.
    """

    adapter_fields = ("lora_A", "lora_B")

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "out r"]
    initial_A: Float[Array, "r in"]
    initial_B: Float[Array, "out r"]

    def halved(self, W: Matrix, triplets: Triplets, dtype: DTypeLike) -> dict[str, Any]:
        """The fields, for a start from `U S V^T`: half of each value is in each factor.

        **Raises:** `ValueError` if `alpha` is not positive.
        """
        if self.alpha <= 0:
            raise ValueError(
                f"{type(self).__name__} divides by its scale, so alpha must be greater than 0, "
                f"but is {self.alpha}"
            )
        U, S, Vt = triplets
        root = jnp.sqrt(S / self.scaling)
        A, B = (root[:, None] * Vt).astype(dtype), (U * root[None, :]).astype(dtype)
        return self.split(W, A, B)

    def split(self, W: Matrix, A: Array, B: Array) -> dict[str, Any]:
        return {
            "lora_A": A,
            "lora_B": B,
            # Copies: one buffer in two leaves could not be donated to a compiled step.
            "initial_A": jnp.copy(A),
            "initial_B": jnp.copy(B),
            "base": self.with_matrix(self.base, W - self.update(B, A, W)),
        }

    @property
    def scaling(self) -> float:
        """The factor `s` of the low-rank term."""
        return self.alpha / self.rank

    def update(self, B: Array, A: Array, W: Array) -> Matrix:
        """`s B A` in the precision of `W`."""
        return self.scaling * (B.astype(W.dtype) @ A.astype(W.dtype))

    def law(self, W: Matrix) -> Matrix:
        return W + self.update(self.lora_B, self.lora_A, W)

    def forward(self, x: ArrayLike) -> Array:
        return self.low_rank(x, self.lora_A, self.lora_B, between=lambda h: self.scaling * h)

    def form_of_law(self) -> LowRankForm:
        return LowRankForm(self.lora_A, self.scaling * self.lora_B)

    def low_rank_form(self) -> LowRankForm:
        # The initial update was subtracted from the weight, so it has the opposite sign.
        A = jnp.concatenate([self.lora_A, self.initial_A])
        B = jnp.concatenate([self.lora_B, -self.initial_B], axis=1)
        return LowRankForm(A, self.scaling * B)

    def unwrap(self) -> eqx.Module:
        W = self.matrix(self.base)
        return self.with_matrix(self.base, W + self.update(self.initial_B, self.initial_A, W))

    @classmethod
    def from_state(
        cls, base: eqx.Module, state: Mapping[str, Array], rank: int, alpha: float
    ) -> LoRAWrapper:
        restored: Any = super().from_state(base, state, rank, alpha)
        W = cls.matrix(base)
        residual = W - restored.update(restored.initial_B, restored.initial_A, W)
        return eqx.tree_at(lambda w: w.base, restored, cls.with_matrix(base, residual))


class SingularSplit(Split):
    """A split by singular triplets of the weight. A layer whose weight is zero stays zero."""

    def start(
        self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike, *, svd: str = "auto"
    ) -> dict[str, Any]:
        return self.halved(W, self.triplets(W, r, svd, key), dtype)

    @staticmethod
    @abc.abstractmethod
    def triplets(W: Matrix, r: int, svd: str, key: PRNGKeyArray) -> Triplets:
        """The `r` singular triplets of `W` that are trained."""


class PiSSA(SingularSplit):
    """PiSSA: train the principal singular triplets of the weight, freeze the residual.

    Law: `W' = base + (alpha / r) B A`. With `U S V^T` the `r` largest triplets of `W` and `s` the
    scale, `B = U sqrt(S / s)` and `A = sqrt(S / s) V^T` at first, and `base` holds `W - s B A`.
    `r(in + out)` parameters train. The decomposition runs in float32 at least.

    Paper: Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
    Language Models", arXiv:2404.02948. The paper has no scale; `alpha = r` gives its `s = 1`.

    - `svd`: `"exact"`, `"randomized"` or `"auto"`, a random subspace for matrices that are large
        compared with the rank. The start is exact either way, because the base is the residual.

    **Raises:** `ValueError` if `alpha` is not positive.
    """

    variant = "pissa"
    about = cited("2404.02948", family="singular", formula="r (in + out)")

    @staticmethod
    def triplets(W: Matrix, r: int, svd: str, key: PRNGKeyArray) -> Triplets:
        return largest(W, r, svd, key)


class MiLoRA(SingularSplit):
    """MiLoRA: train the *minor* singular triplets of the weight, freeze the principal ones.

    Law: `W' = base + (alpha / r) B A` as in PiSSA, with the `r` smallest triplets. `r(in + out)`
    parameters train.

    Paper: Wang et al., "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM
    Finetuning", arXiv:2406.09044.

    - `svd`: `"exact"` or `"auto"`, which is the same, or `"gram"`, which finds the triplets by
        eigenvectors in half the time and approximately (their product is off by 1e-3 to 4e-2 of its
        norm in float32). The start is exact all the same.

    **Raises:** `ValueError` if `alpha` is not positive.
    """

    variant = "milora"
    about = cited("2406.09044", family="singular", formula="r (in + out)")

    @staticmethod
    def triplets(W: Matrix, r: int, svd: str, key: PRNGKeyArray) -> Triplets:
        return smallest(W, r, svd)


class OLoRA(Split):
    """OLoRA: train a part of the weight with an orthonormal basis, freeze the residual.

    Law: `W' = base + (alpha / r) B A`. With `W = Q R` and `s` the scale, `B` starts as the first
    `r` columns of `Q` and `A` as the first `r` rows of `R`, and `base` holds `W - s B A`.
    `r(in + out)` parameters train. The decomposition runs in float32 at least.

    Paper: Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
    arXiv:2406.01775.
    """

    variant = "olora"
    about = cited("2406.01775", family="low rank", formula="r (in + out)")

    def start(self, W: Matrix, r: int, key: PRNGKeyArray, dtype: DTypeLike) -> dict[str, Any]:
        # The first columns of `Q` depend only on the first columns of `W`.
        Q, _ = jnp.linalg.qr(W[:, :r])
        return self.split(W, (Q.T @ W).astype(dtype), Q.astype(dtype))

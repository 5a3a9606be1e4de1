"""Updates of low rank: their factors, the nearest update of a smaller rank, and its error."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._compute import at_least_float32
from .._contract import LoRAWrapper, over_stack
from .._sharding import on_the_mesh


class Factors(NamedTuple):
    """The update `B A` of a matrix. Leading axes are those of a stack."""

    A: Float[Array, "*stack k in"]
    B: Float[Array, "*stack out k"]

    @property
    def rank(self) -> int:
        """The common side of the factors."""
        return self.A.shape[-2]

    @property
    def largest_rank(self) -> int:
        """The largest rank that the matrix allows: its smaller side."""
        return min(self.B.shape[-2], self.A.shape[-1])

    def as_adapter(self, cls: type[LoRAWrapper]) -> tuple[dict[str, Array], int, float]:
        """State, rank and alpha of an adapter of a class with a `low_rank_scale`.

        Alpha is the rank, which makes the scale of LoRA 1.
        """
        scale = cls.low_rank_scale(self.rank, float(self.rank))
        assert scale is not None
        dtype = widest([self.A.dtype, self.B.dtype])
        state = {"lora_A": self.A.astype(dtype), "lora_B": self.B.astype(dtype) / scale}
        return state, self.rank, float(self.rank)


class Triplets(NamedTuple):
    """The singular triplets of a matrix, largest first."""

    U: Float[Array, "*stack out k"]
    S: Float[Array, "*stack k"]
    Vt: Float[Array, "*stack k in"]

    @classmethod
    def of(cls, matrix: Float[Array, "*stack out in"]) -> "Triplets":
        """All triplets of `matrix`."""
        return cls(*jnp.linalg.svd(matrix, full_matrices=False))

    @classmethod
    def of_product(cls, update: Factors) -> "Triplets":
        """The triplets of `B A`. If its rank `k` is small, only a `(k, k)` matrix is decomposed."""
        if update.rank >= update.largest_rank:
            return cls.of(update.B @ update.A)
        Q_B, R_B = jnp.linalg.qr(update.B)
        Q_A, R_A = jnp.linalg.qr(update.A.mT)
        inner = cls.of(R_B @ R_A.mT)
        return cls(Q_B @ inner.U, inner.S, inner.Vt @ Q_A.mT)

    def cut_to(self, rank: int) -> Factors:
        """The nearest update of that rank (Eckart and Young). Zeros fill in for missing triplets.

        The rows of `A` are orthonormal, so that `B` alone holds the size of the update.
        """
        missing = max(rank - self.S.shape[-1], 0)
        stack = [(0, 0)] * (self.S.ndim - 1)
        A = jnp.pad(self.Vt[..., :rank, :], [*stack, (0, missing), (0, 0)])
        B = jnp.pad(self.U[..., :rank] * self.S[..., None, :rank], [*stack, (0, 0), (0, missing)])
        return Factors(A, B)

    def lost_by_cutting(self, rank: int) -> Float[Array, ""]:
        """`||W - W_rank|| / ||W||` in the Frobenius norm, over all of a stack; 0 if `W` is 0."""
        total = jnp.sum(self.S * self.S)
        return jnp.sqrt(jnp.sum(self.S[..., rank:] ** 2) / jnp.where(total > 0, total, 1))

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps the part `energy` of `||W||^2`, in each slice of a stack."""
        kept = np.cumsum(np.asarray(self.S, np.float64) ** 2, axis=-1)
        enough = kept >= energy * kept[..., -1:]
        return int(np.max(np.argmax(enough, axis=-1))) + 1


def known_factors(adapter: LoRAWrapper) -> Factors | None:
    """`A` and `B` of an adapter whose update is the product `B A`; `None` for other adapters.

    The factors are float32 at least. Those of a stack have the axes of the stack in front.
    """
    return on_the_mesh(adapter, _known_factors, adapter)


def _known_factors(adapter: LoRAWrapper) -> Factors | None:
    def one(adapter: LoRAWrapper) -> Factors | None:
        known = adapter.low_rank_update()
        return None if known is None else Factors(*known)

    # Half precision would round the scale in a factor, or overflow.
    return over_stack(one, type(adapter).stack_ndim(adapter.base))(at_least_float32(adapter))


def widest(dtypes: Iterable[Any]) -> Any:
    """The first dtype of the largest size. (Strict promotion allows no mixture of dtypes.)"""
    return max(dtypes, key=lambda dtype: dtype.itemsize)

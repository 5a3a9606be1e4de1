"""Updates of low rank: their factors, the nearest of a smaller rank, and what that loses."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._compute import at_least_float32
from .._contract import LoRAWrapper, is_whole, over_stack
from .._errors import SelectionError


class Factors(NamedTuple):
    """The update `B A` of a matrix. Leading axes are those of a stack."""

    A: Float[Array, "*stack k in"]
    B: Float[Array, "*stack out k"]

    @property
    def smaller_side(self) -> int:
        """The largest rank that the matrix allows."""
        return min(self.B.shape[-2], self.A.shape[-1])


class Triplets(NamedTuple):
    """The singular triplets of a matrix, largest first."""

    U: Float[Array, "*stack out k"]
    S: Float[Array, "*stack k"]
    Vt: Float[Array, "*stack k in"]


def check_rank(rank: Any) -> None:
    """**Raises:** `SelectionError` for a `rank` that is none. (`None` is left open.)"""
    if rank is not None and not (is_whole(rank) and rank >= 1):
        raise SelectionError(f"`rank` must be a whole number of at least 1, but is {rank!r}.")


def check_part(name: str, part: Any) -> None:
    """**Raises:** `SelectionError` unless `part` is a number in `(0, 1]`, or `None`."""
    if part is not None and not (isinstance(part, float | int | np.number) and 0 < part <= 1):
        raise SelectionError(f"`{name}` must be a Python number in (0, 1], but is {part!r}.")


def check_number(name: str, number: Any) -> None:
    """**Raises:** `SelectionError` unless `number` is one real number, which may be traced."""
    is_number = isinstance(number, int | float)
    if isinstance(number, np.ndarray | np.generic | jax.Array):
        kinds = (np.bool_, jnp.integer, jnp.floating)
        is_number = number.ndim == 0 and any(jnp.issubdtype(number.dtype, k) for k in kinds)
    if not is_number:
        raise SelectionError(f"`{name}` must be one real number, but is {number!r}.")


def known_factors(wrapper: LoRAWrapper) -> Factors | None:
    """The update of an adapter, or of a stack of them, if it is known as a product.

    In float32 at least: in a half precision, the scale in a factor would round it, or overflow.
    """

    def one(wrapper: LoRAWrapper) -> Factors | None:
        known = wrapper.low_rank_update()
        return None if known is None else Factors(*known)

    return over_stack(one, type(wrapper).stack_ndim(wrapper.base))(at_least_float32(wrapper))


def triplets_of_product(update: Factors) -> Triplets:
    """The triplets of `B A`, by way of a `(k, k)` matrix if `k` is small: `B A` is not formed."""
    k = update.A.shape[-2]
    if k >= update.smaller_side:
        return triplets_of(update.B @ update.A)
    Q_B, R_B = jnp.linalg.qr(update.B)
    Q_A, R_A = jnp.linalg.qr(update.A.mT)
    inner = triplets_of(R_B @ R_A.mT)
    return Triplets(Q_B @ inner.U, inner.S, inner.Vt @ Q_A.mT)


def triplets_of(matrix: Float[Array, "*stack out in"]) -> Triplets:
    """All triplets of `matrix`."""
    return Triplets(*jnp.linalg.svd(matrix, full_matrices=False))


def cut_to(triplets: Triplets, rank: int) -> Factors:
    """The nearest update of that rank (Eckart and Young). Missing triplets are filled with zeros.

    The rows of `A` are orthonormal, so that `B` alone holds the size of the update.
    """
    U, S, Vt = triplets
    missing = max(rank - S.shape[-1], 0)
    stack = [(0, 0)] * (S.ndim - 1)
    A = jnp.pad(Vt[..., :rank, :], [*stack, (0, missing), (0, 0)])
    B = jnp.pad(U[..., :rank] * S[..., None, :rank], [*stack, (0, 0), (0, missing)])
    return Factors(A, B)


def lost_by_cutting(S: Float[Array, "*stack k"], rank: int) -> Float[Array, ""]:
    """`||W - W_rank|| / ||W||` in the Frobenius norm, over all of a stack; 0 if `W` is 0."""
    total = jnp.sum(S * S)
    return jnp.sqrt(jnp.sum(S[..., rank:] ** 2) / jnp.where(total > 0, total, 1))


def rank_for(S: Float[Array, "*stack k"], energy: float) -> int:
    """The smallest rank that keeps the part `energy` of `||W||^2`, in each slice of a stack."""
    kept = np.cumsum(np.asarray(S, np.float64) ** 2, axis=-1)
    enough = kept >= energy * kept[..., -1:]
    return int(np.max(np.argmax(enough, axis=-1))) + 1


def as_adapter(
    cls: type[LoRAWrapper], update: Factors, dtype: Any
) -> tuple[dict[str, Array], int, float]:
    """State, rank and alpha of an adapter of class `cls` whose update is `B A`.

    `cls` must have a `low_rank_scale`. Alpha is the rank, which makes the scale of LoRA 1.
    """
    rank = update.A.shape[-2]
    scale = cls.low_rank_scale(rank, float(rank))
    assert scale is not None
    state = {"lora_A": update.A.astype(dtype), "lora_B": (update.B / scale).astype(dtype)}
    return state, rank, float(rank)


def widest(dtypes: Iterable[Any]) -> Any:
    """The first dtype of the largest size. (Under strict promotion JAX finds none for mixtures.)"""
    return max(dtypes, key=lambda dtype: dtype.itemsize)

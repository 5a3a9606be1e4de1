"""Updates that are products `B A`: decompose them, cut their rank, pad them, add them up."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Inexact

from jno.lora.extending import widest
from jno_lora_zoo import Factors, Triplets


def factors_of(
    states: Sequence[Mapping[str, Array]], scales: Sequence[ArrayLike], dtype: DTypeLike
) -> list[Factors]:
    """The updates of adapters with these states. The scales go into `B`."""
    updates: list[Factors] = []
    for state, scale in zip(states, scales, strict=True):
        A, B = (jnp.asarray(state[name], dtype) for name in ("lora_A", "lora_B"))
        if "multiplier" in state:  # a number for each slice of a stack
            B = B * jnp.asarray(state["multiplier"], dtype)[..., None, None]
        updates.append(Factors(A, jnp.asarray(scale, dtype) * B))
    return updates


def triplets_of(matrix: Inexact[Array, "*stack out in"]) -> Triplets:
    """All singular triplets of `matrix`."""
    return Triplets(*jnp.linalg.svd(matrix, full_matrices=False))


def triplets_of_product(update: Factors) -> Triplets:
    """All singular triplets of `B A`, from a `(k, k)` matrix if `k` is small."""
    if update.rank >= update.largest_rank:
        return triplets_of(update.B @ update.A)
    Q_B, R_B = jnp.linalg.qr(update.B)
    Q_A, R_A = jnp.linalg.qr(update.A.mT)
    inner = triplets_of(R_B @ R_A.mT)
    return Triplets(Q_B @ inner.U, inner.S, inner.Vt @ Q_A.mT)


def cut(triplets: Triplets, rank: int) -> Factors:
    """The nearest update of this rank (Eckart and Young), padded with zero directions if needed.

    The rows of `A` are orthonormal, so the size of the update is in `B` alone.
    """
    U, S, Vt = triplets
    B = U[..., :rank] * S[..., None, :rank].astype(U.dtype)
    return padded(Factors(Vt[..., :rank, :], B), rank)


def norm_of(matrices: Iterable[Triplets], start: int = 0) -> Float[Array, ""]:
    """The Frobenius norm of all matrices together, without their first `start` directions."""
    values = [triplets.S[..., start:].ravel() for triplets in matrices]
    dtype = widest(S.dtype for S in values)
    return jnp.linalg.norm(jnp.concatenate([S.astype(dtype) for S in values]))


def lost_by_cutting(matrices: Collection[Triplets], rank: int) -> Float[Array, ""]:
    """`||W - W_rank|| / ||W||` over all matrices, each of which may be a stack; 0 if `W` is 0."""
    norm = norm_of(matrices)
    return norm_of(matrices, rank) / jnp.where(norm > 0, norm, 1)


def rank_for(triplets: Triplets, energy: float) -> int:
    """The smallest rank that keeps the fraction `energy` of `||W||^2`, in all slices."""
    sums = np.cumsum(np.asarray(triplets.S, np.float64) ** 2, axis=-1)
    is_enough = sums >= energy * sums[..., -1:]
    return int(np.max(np.argmax(is_enough, axis=-1))) + 1


def padded(update: Factors, rank: int) -> Factors:
    """The same update with at least `rank` directions. New directions are zero."""
    stack, new = [(0, 0)] * (update.A.ndim - 2), (0, max(rank - update.rank, 0))
    A = jnp.pad(update.A, [*stack, new, (0, 0)])
    return Factors(A, jnp.pad(update.B, [*stack, (0, 0), new]))


def side_by_side(updates: Collection[Factors]) -> Factors:
    """The sum of several updates of one matrix, in their widest dtype."""
    dtype = widest(factor.dtype for update in updates for factor in update)
    A = jnp.concatenate([update.A.astype(dtype) for update in updates], axis=-2)
    return Factors(A, jnp.concatenate([update.B.astype(dtype) for update in updates], axis=-1))


def within_full_rank(update: Factors) -> Factors:
    """The same update with at most the rank of the matrix, because adapters may not have more."""
    if update.rank <= update.largest_rank:
        return update
    W = update.B @ update.A
    identity = jnp.broadcast_to(
        jnp.eye(update.largest_rank, dtype=W.dtype), (*W.shape[:-2], *[update.largest_rank] * 2)
    )
    return Factors(W, identity) if W.shape[-2] <= W.shape[-1] else Factors(identity, W)

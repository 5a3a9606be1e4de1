"""Singular triplets for initialisers, exact or from a random subspace; never used in a step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from jno.lora.extending import run

# With this many columns more than the rank, the subspace contains 0.96 of the energy of the largest
# triplets if the spectrum does not decay, and 0.9999 if it decays like `1/k`.
_OVERSAMPLING = 4
_LEAST = 16  # columns, which cost little beside reading the matrix
_STEPS = 4


class Triplets(NamedTuple):
    """Singular triplets of a matrix, largest first: `U`, the values `S`, and `V` transposed."""

    U: Inexact[Array, "*stack out k"]
    S: Float[Array, "*stack k"]
    Vt: Inexact[Array, "*stack k in"]


def largest(W: Float[Array, "out in"], r: int, svd: str, key: PRNGKeyArray) -> Triplets:
    """The `r` largest singular triplets of `W`.

    `svd` is `"exact"`, `"randomized"` (in a random subspace, from `key`), or `"auto"`, which is
    randomized for matrices that are large compared with the rank.
    """
    _check(svd, "auto", "exact", "randomized")
    smaller = min(W.shape)
    large = smaller >= 512 and smaller >= 3 * (r + _OVERSAMPLING) * (1 + _STEPS)
    if svd == "randomized" or (svd == "auto" and large):
        return run(_in_random_subspace, W, r, key)
    return run(_exact, W, 0, r)


# By `run`, also if a constructor is called directly, so that LAPACK has one thread and
# never gets infinity.
def _exact(W: Float[Array, "out in"], first: int, end: int) -> Triplets:
    U, S, Vt = jnp.linalg.svd(W, full_matrices=False)
    return Triplets(U[:, first:end], S[first:end], Vt[first:end])


def smallest(W: Float[Array, "out in"], r: int, svd: str) -> Triplets:
    """The `r` smallest singular triplets of `W`, among as many as its smaller side.

    `svd` is `"exact"` (as is `"auto"` here), or `"gram"`: eigenvectors of `W W^T` or `W^T W`, in
    half the time. This squares the condition number, so in float32, singular values below `1e-4`
    times the largest are noise, and the triplets' product is off by `1e-3` to `4e-2` of its norm.
    """
    _check(svd, "auto", "exact", "gram")
    if svd == "gram":
        return run(_smallest_by_gram, W, r)
    return run(_exact, W, min(W.shape) - r, min(W.shape))


def _smallest_by_gram(W: Float[Array, "out in"], r: int) -> Triplets:
    tall = W.shape[0] >= W.shape[1]
    vectors = jnp.linalg.eigh(W.T @ W if tall else W @ W.T)[1][:, :r][:, ::-1]
    images = W @ vectors if tall else W.T @ vectors
    S = jnp.sqrt(jnp.sum(images * images, axis=0))
    units = images / jnp.where(S > 0, S, 1)[None, :]
    return Triplets(units, S, vectors.T) if tall else Triplets(vectors, S, units.T)


@functools.partial(jax.jit, static_argnames="r")
def _in_random_subspace(W: Float[Array, "out in"], r: int, key: PRNGKeyArray) -> Triplets:
    """The triplets of `W` within the space of `W G, (W W^T) W G, (W W^T)^2 W G, ...`, `G` random.

    Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular
    Value Decomposition", arXiv:1504.05477. For the same number of products with `W`, the space of
    all powers contains far more energy than the space of the last power. Singular values below
    `1e-3` times the largest are not resolved.
    """
    smaller = min(W.shape)
    columns = min(max(r + _OVERSAMPLING, _LEAST), smaller)
    block = _scaled(W @ jax.random.normal(key, (W.shape[1], columns), W.dtype))
    blocks = [block]
    for _ in range(min(_STEPS, smaller // columns - 1)):
        # The barrier keeps the row layout; for `W^T Q`, XLA would read the matrix across its
        # layout.
        image = lax.optimization_barrier(block.T @ W)
        block = _scaled(W @ image.T)
        blocks.append(block)
    basis = jnp.linalg.qr(jnp.concatenate(blocks, axis=1))[0]
    image = basis.T @ W
    # A small square matrix gives the best directions, and a smaller matrix gives their triplets.
    best = jnp.linalg.eigh(image @ image.T)[1][:, ::-1][:, :r]
    Q, R = jnp.linalg.qr(image.T @ best)
    U, S, Vt = jnp.linalg.svd(R.T, full_matrices=False)
    return Triplets(basis @ (best @ U), S, Vt @ Q.T)


def _scaled(Y: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`Y` times a number, so that powers of a matrix neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(Y))
    return Y / jnp.where(largest > 0, largest, 1)


def _check(svd: str, *ways: str) -> None:
    if svd not in ways:
        raise ValueError(f"`svd` must be one of {', '.join(map(repr, ways))}, but is {svd!r}")

"""Singular triplets for initialisers: exact, or from a random subspace.

LAPACK is called in initialisers only, never in a step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Enough for 0.96 of the energy of the largest triplets where the spectrum does not decay at all.
_OVERSAMPLING = 24
_POWER_STEPS = 6


class Triplets(NamedTuple):
    """`r` singular triplets, largest first: `U` `(out, r)`, `S` `(r,)`, `Vt` `(r, in)`."""

    U: Float[Array, "out r"]
    S: Float[Array, " r"]
    Vt: Float[Array, "r in"]


def largest(W: Float[Array, "out in"], r: int, svd: str, key: PRNGKeyArray) -> Triplets:
    """The `r` largest singular triplets of `W`.

    **Arguments:**

    - `svd`: `"exact"`, `"randomized"`, or `"auto"`, which takes the latter for matrices that are
        large beside the rank.
    - `key`: for the random subspace.

    **Raises:** `ValueError` for another `svd`.
    """
    _check(svd, ("auto", "exact", "randomized"))
    smaller = min(W.shape)
    large = smaller >= 512 and smaller >= 8 * (r + _OVERSAMPLING)
    if svd == "randomized" or (svd == "auto" and large):
        return _in_random_subspace(W, r, key)
    U, S, Vt = _full(W)
    return Triplets(U[:, :r], S[:r], Vt[:r])


def smallest(W: Float[Array, "out in"], r: int, svd: str) -> Triplets:
    """The `r` smallest singular triplets of `W`, among as many as its smaller side.

    **Arguments:**

    - `svd`: `"exact"`, which `"auto"` means here, or `"gram"`, which goes by the eigenvectors of
        `W W^T` or `W^T W` in half the time. That squares the condition: singular values below
        `1e-4` times the largest are noise in float32, and the triplets' product is off by `1e-3`
        to `4e-2` of its norm.

    **Raises:** `ValueError` for another `svd`.
    """
    _check(svd, ("auto", "exact", "gram"))
    if svd != "gram":
        U, S, Vt = _full(W)
        return Triplets(U[:, -r:], S[-r:], Vt[-r:])
    tall = W.shape[0] >= W.shape[1]
    # Eigenvalues come smallest first.
    vectors = jnp.linalg.eigh(W.T @ W if tall else W @ W.T)[1][:, :r][:, ::-1]
    images = W @ vectors if tall else W.T @ vectors
    S = jnp.sqrt(jnp.sum(images * images, axis=0))
    units = images / jnp.where(S > 0, S, 1)[None, :]
    return Triplets(units, S, vectors.T) if tall else Triplets(vectors, S, units.T)


def _in_random_subspace(W: Float[Array, "out in"], r: int, key: PRNGKeyArray) -> Triplets:
    """Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv:0909.4061."""
    columns = min(r + _OVERSAMPLING, *W.shape)
    Q = _orthonormal(W @ jax.random.normal(key, (W.shape[1], columns), W.dtype))
    for _ in range(_POWER_STEPS):
        # In between as well: the square of a quickly decaying spectrum is lost in rounding.
        Q = _orthonormal(W @ _orthonormal(W.T @ Q))
    U, S, Vt = _full(Q.T @ W)
    return Triplets(Q @ U[:, :r], S[:r], Vt[:r])


def _orthonormal(Y: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jnp.linalg.qr(Y)[0]


def _full(W: Float[Array, "out in"]) -> Any:
    return jnp.linalg.svd(W, full_matrices=False)


def _check(svd: str, known: tuple[str, ...]) -> None:
    if svd not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"`svd` must be one of {names}, but is {svd!r}")

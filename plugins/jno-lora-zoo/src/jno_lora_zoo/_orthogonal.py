"""Orthogonal matrices from packed entries, reflections or columns, without LAPACK."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jno.lora.extending import gauss_jordan

from ._derivatives import differentiated_by


def antisymmetric(packed: Float[Array, "*batch n"], r: int) -> Float[Array, "*batch r r"]:
    """The antisymmetric `Q` with these `n = r (r - 1) / 2` numbers above its diagonal, by row."""
    above = jnp.zeros((*packed.shape[:-1], r, r), packed.dtype)
    above = above.at[(..., *np.triu_indices(r, 1))].set(packed)
    return above - above.mT


def series_for(terms: int | None) -> Float[Array, " terms"] | None:
    """The coefficients `1, 2, ..., 2, 1` of the Cayley map's series in `-Q`, cut after `terms`.

    As in PEFT, two terms are `1, 2`, and three terms count as four. `None` means the exact map.

    **Raises:** `ValueError` unless `terms` is `None` or a whole number above 1.
    """
    if terms is None:
        return None
    if not isinstance(terms, int) or terms < 2:
        raise ValueError(f"`terms` must be None or a whole number above 1, but is {terms!r}")
    return jnp.array([1.0, 2.0] if terms == 2 else [1.0, *[2.0] * (max(terms, 4) - 2), 1.0])


def rotation(
    Q: Float[Array, "*batch r r"], series: Float[Array, " terms"] | None
) -> Float[Array, "*batch r r"]:
    """`R = (I - Q)(I + Q)^-1`, or `sum_k c_k (-Q)^k` for the coefficients `c` of `series`.

    The sum is a rotation only as far as it approximates the map, that is, if the norm of `Q` is
    well below 1.
    """
    if series is None:
        return cayley(Q)
    eye = jnp.broadcast_to(jnp.eye(Q.shape[-1], dtype=Q.dtype), Q.shape)
    *lower, highest = series.astype(Q.dtype)
    R = highest * eye
    for coefficient in reversed(lower):
        R = coefficient * eye - Q @ R
    return R


def _cayley_rule(R: Array, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dR = -2 (I + Q)^-1 dQ (I + Q)^-1, and (I + Q)^-1 = (I + R) / 2: two products, no solve.
    half = (R + jnp.broadcast_to(jnp.eye(R.shape[-1], dtype=R.dtype), R.shape)) / 2
    return R, -2 * (half @ tangents[0] @ half)


@differentiated_by(_cayley_rule)
def cayley(skew: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """`R = (I - Q)(I + Q)^-1` of antisymmetric matrices `Q`: a rotation, however large `Q` is.

    Two Newton-Schulz steps follow the elimination. Each squares `R^T R - I`, which is zero except
    for rounding.
    """
    eye = jnp.broadcast_to(jnp.eye(skew.shape[-1], dtype=skew.dtype), skew.shape)
    # `I - Q` and `(I + Q)^-1` commute, so R solves (I + Q) R = I - Q.
    R = gauss_jordan(eye + skew, eye - skew)
    for _ in range(2):
        R = R @ (1.5 * eye - 0.5 * (R.mT @ R))
    return R


def reflections(U: Float[Array, "n r"]) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """`L` and `R` with `I - L R^T = H_1 H_2 ... H_r`, for `H_i = I - 2 u_i u_i^T / |u_i|^2`.

    The reflections at neighbours `u` and `v`, with unit vectors `p` and `q` and `d = p - q`,
    give `I - 2 p (d + |d|^2 q)^T + 2 d q^T`, which is `I` without a rounding if `u` equals `v`.
    `r` must be even. A column of zeros reflects nothing.
    """
    squares = jnp.sum(U * U, axis=0, keepdims=True)
    inverse = jnp.where(squares > 0, 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    (u, v), (a, b) = ((x[..., ::2], x[..., 1::2]) for x in (U, inverse))
    p, q, least = a * u, b * v, jnp.minimum(a, b)
    # `p - q` would not be zero where a compiler fuses the product and the difference.
    d = least * (u - v) + (a - least) * u - (b - least) * v
    L = jnp.stack([p, d], axis=2).reshape(U.shape)
    R = 2 * jnp.stack([d + jnp.sum(d * d, axis=0, keepdims=True) * q, -q], axis=2).reshape(U.shape)
    # (I - L_1 R_1^T) (I - L_2 R_2^T) ... = I - L T R^T, with T in blocks of the pairs.
    later = np.kron(np.triu(np.ones((p.shape[1],) * 2), 1), np.ones((2, 2)))
    T = _upper_inverse(jnp.eye(U.shape[1], dtype=U.dtype) + jnp.where(later, R.T @ L, 0))
    return L, R @ T.T


def _upper_inverse_rule(
    T: Array, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    return T, -(T @ tangents[0] @ T)


@differentiated_by(_upper_inverse_rule)
def _upper_inverse(S: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """`S^-1` of an upper triangular matrix, row by row from below."""
    r = len(S)
    eye = jnp.eye(r, dtype=S.dtype)

    def solve(k: Array, T: Array) -> Array:
        i = r - 1 - k
        return T.at[i].set((eye[i] - S[i] @ T) / S[i, i])

    return lax.fori_loop(0, r, solve, jnp.zeros_like(S))


def orthonormal(U: Float[Array, "n r"]) -> Float[Array, "n r"]:
    """The orthonormalised columns: `Q` of `U = Q R`, where the diagonal of `R` is positive.

    Uses Gram-Schmidt, twice per column for accuracy. A column of zeros stays zero.
    """

    def add(k: Array, Q: Array) -> Array:
        u = U[:, k]
        for _ in range(2):
            u = u - Q @ (Q.T @ u)
            square = u @ u
            u = u / jnp.sqrt(jnp.where(square > 0, square, 1))
        return Q.at[:, k].set(u)

    return lax.fori_loop(0, U.shape[1], add, jnp.zeros_like(U))

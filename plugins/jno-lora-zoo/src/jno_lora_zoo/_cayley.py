"""A Cayley map in plain HLO: several LAPACK calls in one compiled step can deadlock on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._derivatives import differentiated_by


def _cayley_rule(R: Array, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dR = -2 (I + Q)^-1 dQ (I + Q)^-1, and (I + Q)^-1 = (I + R) / 2: two products, no solve.
    half = (R + jnp.broadcast_to(jnp.eye(R.shape[-1], dtype=R.dtype), R.shape)) / 2
    return R, -2 * (half @ tangents[0] @ half)


@differentiated_by(_cayley_rule)
def cayley(skew: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """`R = (I - Q)(I + Q)^-1` of antisymmetric matrices `Q`: a rotation, however large `Q` is.

    Gauss-Jordan elimination with partial pivoting, and two Newton-Schulz steps. Each step squares
    the rest that rounding leaves of `R^T R - I`.
    """
    n = skew.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=skew.dtype), skew.shape)
    # In the integer type of the loop index, which depends on the configuration.
    row = jnp.arange(n).reshape(n, 1)
    # `I - Q` and `(I + Q)^-1` commute, so R solves (I + Q) R = I - Q.
    augmented = jnp.concatenate([eye + skew, eye - skew], axis=-1)

    def eliminate(k: Array, rows: Array) -> Array:
        column = jax.lax.dynamic_slice_in_dim(rows, k, 1, axis=-1)
        size = jnp.where(_like(row, column) < k, -1, jnp.abs(column))
        is_pivot = _like(row, column) == jnp.argmax(size, axis=-2, keepdims=True)
        is_k = _like(row, column) == k
        pivot = jnp.sum(jnp.where(is_pivot, rows, 0), axis=-2, keepdims=True)
        former = jax.lax.dynamic_slice_in_dim(rows, k, 1, axis=-2)
        swapped = jnp.where(is_pivot, former, rows)
        pivot = pivot / jax.lax.dynamic_slice_in_dim(pivot, k, 1, axis=-1)
        column = jax.lax.dynamic_slice_in_dim(swapped, k, 1, axis=-1)
        return jnp.where(is_k, pivot, swapped - column * pivot)

    R = jax.lax.fori_loop(0, n, eliminate, augmented)[..., n:]
    for _ in range(2):
        R = R @ (1.5 * eye - 0.5 * (R.mT @ R))
    return R


def _like(row: Array, column: Array) -> Array:
    return jnp.broadcast_to(row, column.shape)

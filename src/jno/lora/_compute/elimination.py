"""Linear equations in plain HLO: LAPACK calls in one compiled step can deadlock on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


def gauss_jordan(
    A: Inexact[Array, "*batch n n"], B: Inexact[Array, "*batch n m"], *, pivoting: bool = True
) -> Inexact[Array, "*batch n m"]:
    """`A^-1 B`, by Gauss-Jordan elimination, for steps of training that may not call LAPACK.

    - `pivoting`: whether to exchange rows (partial pivoting). Not needed for positive definite
        matrices.
    """
    n = A.shape[-1]
    # In the integer type of the loop index, which depends on the configuration.
    row = jnp.broadcast_to(jnp.arange(n)[:, None], (*A.shape[:-1], 1))
    slice_at = jax.lax.dynamic_slice_in_dim

    def eliminate(k: Array, rows: Array) -> Array:
        pivot = slice_at(rows, k, 1, axis=-2)
        if pivoting:
            size = jnp.where(row < k, -1, jnp.abs(slice_at(rows, k, 1, axis=-1)))
            is_pivot = row == jnp.argmax(size, axis=-2, keepdims=True)
            largest = jnp.sum(jnp.where(is_pivot, rows, 0), axis=-2, keepdims=True)
            rows, pivot = jnp.where(is_pivot, pivot, rows), largest
        pivot = pivot / slice_at(pivot, k, 1, axis=-1)
        return jnp.where(row == k, pivot, rows - slice_at(rows, k, 1, axis=-1) * pivot)

    return jax.lax.fori_loop(0, n, eliminate, jnp.concatenate([A, B], axis=-1))[..., n:]

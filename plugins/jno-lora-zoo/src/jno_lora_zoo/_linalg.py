"""Linear algebra: a decomposition for initialisers, and a Cayley map that may run in a step.

LAPACK is called in initialisers only. Several LAPACK calls in one compiled step can wait for each
other's threads forever on a CPU with few cores, so what runs in a step is plain HLO.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def svd(
    W: Float[Array, "out in"],
) -> tuple[Float[Array, "out k"], Float[Array, " k"], Float[Array, "k in"]]:
    """The singular value decomposition, largest values first."""
    return jnp.linalg.svd(W, full_matrices=False)  # pyright: ignore[reportReturnType]


@jax.custom_jvp
def cayley(skew: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """`R = (I - Q)(I + Q)^-1` of antisymmetric matrices `Q`: a rotation.

    Gauss-Jordan elimination without pivoting: the symmetric part of `I + Q` is the identity, so
    every pivot is at least 1.
    """
    n = skew.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=skew.dtype), skew.shape)
    # `I - Q` and `(I + Q)^-1` commute, so R solves (I + Q) R = I - Q.
    augmented = jnp.concatenate([eye + skew, eye - skew], axis=-1)

    def eliminate(k: Array, rows: Array) -> Array:
        pivot = jax.lax.dynamic_slice_in_dim(rows, k, 1, axis=-2)
        pivot = pivot / jax.lax.dynamic_slice_in_dim(pivot, k, 1, axis=-1)
        column = jax.lax.dynamic_slice_in_dim(rows, k, 1, axis=-1)
        reduced = rows - column * pivot
        return jax.lax.dynamic_update_slice_in_dim(reduced, pivot, k, axis=-2)

    return jax.lax.fori_loop(0, n, eliminate, augmented)[..., n:]


@cayley.defjvp
def _cayley_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dR = -2 (I + Q)^-1 dQ (I + Q)^-1, and (I + Q)^-1 = (I + R) / 2: two products, no solve.
    (skew,), (dskew,) = primals, tangents
    R = cayley(skew)
    half = (R + jnp.broadcast_to(jnp.eye(R.shape[-1], dtype=R.dtype), R.shape)) / 2
    return R, -2 * (half @ dskew @ half)

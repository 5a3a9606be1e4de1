"""A Cayley map, for steps of training that may not call LAPACK."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora.extending import gauss_jordan

from ._derivatives import differentiated_by


def _cayley_rule(R: Array, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dR = -2 (I + Q)^-1 dQ (I + Q)^-1, and (I + Q)^-1 = (I + R) / 2: two products, no solve.
    half = (R + jnp.broadcast_to(jnp.eye(R.shape[-1], dtype=R.dtype), R.shape)) / 2
    return R, -2 * (half @ tangents[0] @ half)


@differentiated_by(_cayley_rule)
def cayley(skew: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """`R = (I - Q)(I + Q)^-1` of antisymmetric matrices `Q`: a rotation, however large `Q` is.

    Two Newton-Schulz steps follow the elimination. Each squares `R^T R - I`, which only rounding
    makes differ from zero.
    """
    eye = jnp.broadcast_to(jnp.eye(skew.shape[-1], dtype=skew.dtype), skew.shape)
    # `I - Q` and `(I + Q)^-1` commute, so R solves (I + Q) R = I - Q.
    R = gauss_jordan(eye + skew, eye - skew)
    for _ in range(2):
        R = R @ (1.5 * eye - 0.5 * (R.mT @ R))
    return R

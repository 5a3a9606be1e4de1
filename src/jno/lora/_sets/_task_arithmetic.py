"""Arithmetic of task vectors: make one update of a matrix out of several.

The updates of one matrix lie along the first axis: `(n, *stack, out, in)`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

MajoritySign = Literal["total", "frequency"]


def trimmed(
    updates: Float[Array, "n *stack out in"], density: float
) -> Float[Array, "n *stack out in"]:
    """Keep the part `density` of each matrix's entries that is largest in magnitude, at least one.

    The others become 0.
    """
    *batch, outputs, inputs = updates.shape
    sizes = jnp.abs(updates).reshape(*batch, outputs * inputs)
    dropped = outputs * inputs - round(density * outputs * inputs)
    smallest_kept = jnp.sort(sizes, axis=-1)[..., dropped, None, None]
    return jnp.where(jnp.abs(updates) >= smallest_kept, updates, 0)


def dropped_at_random(
    updates: Float[Array, "n *stack out in"], density: float, keys: list[PRNGKeyArray]
) -> Float[Array, "n *stack out in"]:
    """Keep each entry with probability `density`, divided by it, so that its mean stays."""
    kept = [jax.random.bernoulli(key, density, updates.shape[1:]) for key in keys]
    return jnp.where(jnp.stack(kept), updates / density, 0)


def agreed_mean(
    updates: Float[Array, "n *stack out in"], majority_sign: str
) -> Float[Array, "*stack out in"]:
    """The mean, for each entry, of the updates that have its elected sign. Zeros have no sign.

    - `majority_sign`: elect the sign of the sum (`"total"`), or the sign that more updates have
        (`"frequency"`). A draw is positive.
    """
    signs = jnp.sign(updates)
    votes = jnp.sum(updates if majority_sign == "total" else signs, axis=0)
    elected = jnp.where(votes >= 0, 1, -1).astype(updates.dtype)
    agrees = signs == elected[None]
    count = jnp.sum(agrees, axis=0).astype(updates.dtype)
    return jnp.sum(jnp.where(agrees, updates, 0), axis=0) / jnp.maximum(count, 1)

"""Arithmetic of task vectors: several updates of one matrix, made into one.

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
    """The part `density` of each matrix's entries that is largest in magnitude, the rest 0.

    It must be one entry at least.
    """
    *batch, outputs, inputs = updates.shape
    sizes = jnp.abs(updates).reshape(*batch, outputs * inputs)
    dropped = outputs * inputs - round(density * outputs * inputs)
    smallest_kept = jnp.sort(sizes, axis=-1)[..., dropped, None, None]
    return jnp.where(jnp.abs(updates) >= smallest_kept, updates, 0)


def dropped_at_random(
    updates: Float[Array, "n *stack out in"], density: float, keys: list[PRNGKeyArray]
) -> Float[Array, "n *stack out in"]:
    """Each entry kept with probability `density` and divided by it, so that its mean stays."""
    kept = jnp.stack(
        [
            jax.random.bernoulli(key, density, update.shape)
            for key, update in zip(keys, updates, strict=True)
        ]
    )
    return jnp.where(kept, updates / density, 0)


def agreed_mean(
    updates: Float[Array, "n *stack out in"], majority_sign: str
) -> Float[Array, "*stack out in"]:
    """For each entry the mean of the updates that have its elected sign. Zeros have no sign.

    - `majority_sign`: whether the sign of the sum is elected (`"total"`), or that of more updates
        (`"frequency"`). A draw is positive.
    """
    signs = jnp.sign(updates)
    votes = jnp.sum(updates if majority_sign == "total" else signs, axis=0)
    elected = jnp.where(votes >= 0, 1, -1).astype(updates.dtype)
    agrees = signs == elected[None]
    count = jnp.sum(agrees, axis=0).astype(updates.dtype)
    return jnp.sum(jnp.where(agrees, updates, 0), axis=0) / jnp.maximum(count, 1)

"""Random matrices: the factors of a low-rank update, and matrices redrawn at every use."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ._arrays import Matrix
from ._positions import number_of


def low_rank_start(
    W: Matrix, r: int, key: PRNGKeyArray, dtype: Any, fan_in: int
) -> dict[str, Array]:
    """The factors of an update that starts at zero: `A ~ N(0, 1/fan_in)` and `B = 0`."""
    outputs, inputs = W.shape
    A = jax.random.normal(key, (r, inputs), dtype) / math.sqrt(fan_in)
    return {"lora_A": A, "lora_B": jnp.zeros((outputs, r), dtype)}


def uniform_matrix(
    seed: Shaped[Array, "4"], stream: int, shape: tuple[int, int], variance: float, dtype: Any
) -> Float[Array, "rows columns"]:
    """A matrix of independent uniform numbers with mean 0, determined by `seed` and `stream`.

    A counter is hashed by two rounds of an integer hash (the finaliser of MurmurHash3), which XLA
    fuses into its consumer; `jax.random` costs several times as much. `seed` has four numbers from
    0 to 255, of any dtype; `stream` distinguishes the matrices of a seed.
    """
    word = _hash(number_of(seed) ^ jnp.uint32((0x9E3779B9 * (stream + 1)) % 2**32))
    rows, columns = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    bits = _hash(_hash(rows * jnp.uint32(shape[1]) + columns + word) ^ word)
    # A float32 has 24 bits of precision; the half step makes the mean exactly 0.
    unit = ((bits >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23) - 1.0
    return (unit * jnp.float32(math.sqrt(3 * variance))).astype(dtype)


def _hash(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

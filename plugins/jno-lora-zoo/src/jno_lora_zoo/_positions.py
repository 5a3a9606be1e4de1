"""Positions in a matrix: counted, drawn at random, stored as digits, and filled with values."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt

from ._options import whole_number

# Each position is stored as four digits from 0 to 255, lowest first, because a cast of the whole
# model to any floating dtype preserves these digits, but would round the position itself.
Positions = Shaped[Array, "n 4"]


def count_of(shape: tuple[int, ...], r: int, n: Any, option: str) -> int:
    """The number of chosen entries: `n`, or as many as LoRA of rank `r` trains, at most all.

    **Raises:** `ValueError` if positions need more than 32 bits, or unless `n` is a whole number
    from 1 to the number of all entries. The message calls `n` by the name `option`.
    """
    size = math.prod(shape)
    if size >= 2**32:
        raise ValueError(f"the weight has {size} entries, but positions end at 2^32")
    if n is None:
        return min(r * sum(shape), size)
    return whole_number(n, option, size, f", the entries of a weight {shape}")


def drawn_positions(key: PRNGKeyArray, n: int, size: int) -> Positions:
    """`n` different positions below `size`, all equally likely, one in each of `n` segments.

    The segments are shifted cyclically. A permutation of all entries would take far longer.
    """
    # The remainders of random words, whose bias is below `size / 2^32`.
    words = jax.random.bits(key, (n + 1,), jnp.uint32)
    stretch = jnp.arange(n, dtype=jnp.uint32)
    length, longer = divmod(size, n)  # the first segments are longer by 1
    first = stretch * jnp.uint32(length) + jnp.minimum(stretch, jnp.uint32(longer))
    lengths = jnp.uint32(length) + (stretch < longer).astype(jnp.uint32)
    flat = first + words[:n] % lengths
    shift = words[n] % jnp.uint32(size)
    unshifted = jnp.uint32(size) - shift
    return digits_of(jnp.where(flat < unshifted, flat + shift, flat - unshifted))


def digits_of(numbers: Shaped[Array, " n"]) -> Positions:
    """Whole numbers below 2^32 as four digits each, lowest first."""
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
    return ((numbers.astype(jnp.uint32)[:, None] >> shifts[None, :]) & 255).astype(jnp.uint8)


def number_of(digits: Shaped[Array, "*n 4"]) -> UInt[Array, "*n"]:
    """The number with these digits, which may have any dtype."""
    is_float = jnp.issubdtype(digits.dtype, jnp.floating)
    whole = (jnp.round(digits) if is_float else digits).astype(jnp.uint32)
    low, high = whole[..., 0] | (whole[..., 1] << 8), whole[..., 2] | (whole[..., 3] << 8)
    return low | (high << 16)


def row_and_column(positions: Positions, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The rows and columns of the entries, which are counted row by row."""
    flat = number_of(positions)
    return flat // shape[1], flat % shape[1]


def scattered(
    values: Float[Array, " n"], positions: Positions, shape: tuple[int, ...]
) -> Float[Array, "out in"]:
    """The matrix with these values at these positions, and zeros elsewhere."""
    return jnp.zeros(shape, values.dtype).at[row_and_column(positions, shape)].add(values)

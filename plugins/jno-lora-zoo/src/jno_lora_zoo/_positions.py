"""Positions in a matrix: how many, drawn at random, stored so that casts keep them, and filled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt

from ._arrays import Matrix

# Each position is four numbers from 0 to 255, lowest first. These are small enough to survive a
# cast of the whole model to any floating dtype, where a position itself would be rounded.
Positions = Shaped[Array, "n 4"]
_LIMIT = 2**32


def count_of(W: Matrix, r: int, n: Any, option: str) -> int:
    """How many entries are chosen: `n`, or as many numbers as LoRA of rank `r` trains, at most all.

    **Raises:** `ValueError` unless `n`, which `option` names in the message, is a whole number from
    1 to the size of `W`, and if the entries of `W` do not have 32-bit positions.
    """
    if W.size >= _LIMIT:
        raise ValueError(f"the weight has {W.size} entries, but positions end at 2^32")
    if n is None:
        return min(r * sum(W.shape), W.size)
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= W.size:
        raise ValueError(
            f"`{option}` must be a whole number from 1 to {W.size}, the entries of a weight "
            f"{W.shape}, but is {n!r}"
        )
    return int(n)


def drawn_positions(key: PRNGKeyArray, n: int, W: Matrix) -> Positions:
    """`n` different positions in `W`: one in each of `n` stretches, all shifted around the end.

    Each entry is as likely as any other. A permutation of all entries would take far longer.
    """
    inside, shift = jax.random.split(key)
    stretch = jnp.arange(n, dtype=jnp.uint32)
    length, longer = divmod(W.size, n)  # the first ones are longer by 1
    first = stretch * jnp.uint32(length) + jnp.minimum(stretch, jnp.uint32(longer))
    lengths = jnp.uint32(length) + (stretch < longer).astype(jnp.uint32)
    flat = first + jax.random.randint(inside, (n,), jnp.zeros_like(lengths), lengths, jnp.uint32)
    by = jax.random.randint(shift, (), 0, jnp.uint32(W.size), jnp.uint32)
    rest = jnp.uint32(W.size) - by
    return digits_of(jnp.where(flat < rest, flat + by, flat - rest))


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


def row_and_column(positions: Positions, shape: tuple[int, int]) -> tuple[Array, Array]:
    """The rows and columns of the entries, which are counted row by row."""
    flat = number_of(positions)
    return flat // shape[1], flat % shape[1]


def scattered(
    values: Float[Array, " n"], positions: Positions, shape: tuple[int, int]
) -> Float[Array, "out in"]:
    """The matrix with these values at these positions, and zeros elsewhere."""
    return jnp.zeros(shape, values.dtype).at[row_and_column(positions, shape)].add(values)

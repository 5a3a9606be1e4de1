"""The numbers that 4-bit and 8-bit codes stand for, and which code is nearest to a number."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# NormalFloat4: the 16 values of appendix E of the QLoRA paper (arXiv:2305.14314), quantiles of the
# normal distribution such that zero has a code.
NORMAL_FLOAT_4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@functools.cache
def dynamic_tree_8() -> np.ndarray:
    """The 256 values of the signed dynamic data type, ascending, in float32.

    A sign, a decimal exponent `e` from -6 to 0, and a fraction: the exponent `e` has `2^(e + 6)`
    fractions, the midpoints of equal parts of `[0.1, 1]`. Then zero and one.

    Paper: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861.
    """
    values = [0.0, 1.0]
    for exponent in range(-6, 1):
        parts = 2 ** (exponent + 6)
        # A float32 step from both ends, rounded once: to the last bit the values of bitsandbytes.
        step, places = float(np.float32(0.9) / np.float32(parts)), np.arange(parts + 1)
        lower, upper = float(np.float32(0.1)) + step * places, 1 - step * (parts - places)
        edges = np.where(places < (parts + 1) // 2, lower, upper).astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        positive = (np.float32(10.0**exponent) * middles).tolist()
        values += [*positive, *(-value for value in positive)]
    return np.sort(np.asarray(values, np.float32))


def nearest_code(values: Float[Array, "*axes"], book: np.ndarray) -> UInt8[Array, "*axes"]:
    """The index of the entry of the ascending `book` that is nearest: the lower one of two."""
    # Counted, not searched for: XLA fuses this, and holds no more than `values` and the codes.
    entries, value = jnp.asarray(book).reshape(*(1,) * values.ndim, -1), values[..., None]
    is_nearer = entries[..., 1:] - value < value - entries[..., :-1]
    return jnp.sum(is_nearer, axis=-1, dtype=jnp.uint8)


def chosen(codes: UInt8[Array, "*axes"], book: tuple[float, ...]) -> Float[Array, "*axes"]:
    """`book[codes]` for 16 entries, by selections: XLA fuses them, and looks no table up."""
    entries = [jnp.float32(value) for value in book]
    for bit in range(4):
        is_odd = (codes >> jnp.uint8(bit)) & jnp.uint8(1) == 1
        pairs = zip(entries[::2], entries[1::2], strict=True)
        entries = [jnp.where(is_odd, odd, even) for even, odd in pairs]
    return entries[0]

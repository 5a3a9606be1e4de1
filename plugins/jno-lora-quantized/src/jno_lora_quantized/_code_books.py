"""The numbers that 4-bit and 8-bit codes stand for, and which code is nearest to a number."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# NormalFloat4: the 16 values of appendix E of the QLoRA paper (arXiv:2305.14314), quantiles of the
# normal distribution that include zero.
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

    A value has a sign, a decimal exponent `e` from -6 to 0, and a fraction. The exponent `e` has
    `2^(e + 6)` fractions: the midpoints of equal intervals of `[0.1, 1]`. Zero and one are added.

    Paper: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861.
    """
    values = [0.0, 1.0]
    for exponent in range(-6, 1):
        count = 2 ** (exponent + 6)
        # Steps in float32 from both ends, rounded once: the values of bitsandbytes to the last bit.
        step, places = float(np.float32(0.9) / np.float32(count)), np.arange(count + 1)
        lower, upper = float(np.float32(0.1)) + step * places, 1 - step * (count - places)
        edges = np.where(places < (count + 1) // 2, lower, upper).astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        positive = (np.float32(10.0**exponent) * middles).tolist()
        values += [*positive, *(-value for value in positive)]
    return np.sort(np.asarray(values, np.float32))


def nearest_code(values: Float[Array, "*axes"], book: np.ndarray) -> UInt8[Array, "*axes"]:
    """The index of the nearest entry of the ascending `book`; of two, the lower index."""
    # Counting instead of a search: XLA fuses it, and holds only `values` and the codes.
    entries, value = jnp.asarray(book).reshape(*(1,) * values.ndim, -1), values[..., None]
    is_nearer = entries[..., 1:] - value < value - entries[..., :-1]
    return jnp.sum(is_nearer, axis=-1, dtype=jnp.uint8)


def decoded(codes: UInt8[Array, "*axes"], book: tuple[float, ...]) -> Float[Array, "*axes"]:
    """`book[codes]` for 16 entries, by selections, which XLA fuses, instead of a table."""
    entries = [jnp.float32(value) for value in book]
    for bit in range(4):
        is_odd = (codes >> jnp.uint8(bit)) & jnp.uint8(1) == 1
        pairs = zip(entries[::2], entries[1::2], strict=True)
        entries = [jnp.where(is_odd, odd, even) for even, odd in pairs]
    return entries[0]

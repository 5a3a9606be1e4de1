"""Quantisation schemes: how to encode a matrix as codes, and how to decode it."""

import abc
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from jno.lora import SelectionError

Matrix = Float[Array, "rows columns"]
Codes = Integer[Array, "rows bytes"]
Rows = Integer[Array, " n"]
# The encoded scales: arrays of integers.
Encoded = tuple[Array, ...]

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
# How many scales share a second-level scale, as in bitsandbytes.
_SECOND_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Scheme(abc.ABC):
    """`W[i, j] = level(codes[i, j]) scale[i, j // block]`. Blocks lie in the rows of a matrix.

    Each row can therefore be read and sharded separately. The last block of a row may be shorter.
    """

    # The name of the scheme for `quantize`.
    name: ClassVar[str]

    @abc.abstractmethod
    def block_in(self, columns: int) -> int:
        """The number of columns that share a scale, in a row of this length."""

    @abc.abstractmethod
    def encode(self, W: Matrix) -> tuple[Codes, Encoded]:
        """The codes of a float32 matrix, and its encoded scales."""

    @abc.abstractmethod
    def levels(self, codes: Codes) -> Matrix:
        """The number that each code represents, in float32."""

    @abc.abstractmethod
    def scales(self, encoded: Encoded, rows: Rows | None) -> Float[Array, "n blocks"]:
        """The scales of these rows, or of all rows, in float32."""

    def decode(
        self, codes: Codes, encoded: Encoded, columns: int, rows: Rows | None = None
    ) -> Matrix:
        """The decoded matrix in float32, or only `rows`, if `codes` has only these rows."""
        scales = self.scales(encoded, rows)
        blocks = _in_blocks(self.levels(codes)[:, :columns], self.block_in(columns))
        return (blocks * scales[:, :, None]).reshape(len(codes), -1)[:, :columns]


@dataclasses.dataclass(frozen=True)
class FourBits(Scheme):
    """Codes of 16 numbers from -1 to 1, scaled by the largest entry of a block.

    A byte holds two codes, the first in its high half. With `double`, the differences of the scales
    from their mean are 8-bit codes, scaled by the largest of 256 differences, as in QLoRA.
    """

    # The numbers in ascending order, including zero.
    book: ClassVar[tuple[float, ...]]

    block: int = 64
    double: bool = True

    def block_in(self, columns: int) -> int:
        return min(self.block, columns)

    def encode(self, W: Matrix) -> tuple[UInt8[Array, "rows bytes"], Encoded]:
        book = np.asarray(self.book, np.float32)
        codes, scales = _coded_blocks(W, self.block_in(W.shape[1]), book)
        # A zero code fills up the last byte of a row.
        zero = self.book.index(0.0)
        codes = jnp.pad(codes, ((0, 0), (0, W.shape[1] % 2)), constant_values=zero)
        packed = (codes[:, ::2] << jnp.uint8(4)) | codes[:, 1::2]
        return packed, self._encode_scales(scales) if self.double else (_as_bits(scales),)

    def levels(self, codes: UInt8[Array, "rows bytes"]) -> Matrix:
        # Entry by entry, not by concatenating halves or by a table, so that XLA fuses this with the
        # next operations and vectorises it.
        half = jax.lax.broadcasted_iota(jnp.int32, (*codes.shape, 2), 2)
        byte = codes[:, :, None]
        pairs = jnp.where(half == 0, byte >> jnp.uint8(4), byte & jnp.uint8(15))
        return _decoded(pairs, self.book).reshape(len(codes), -1)

    def _encode_scales(self, scales: Float[Array, "rows blocks"]) -> Encoded:
        # The second mean corrects the rounding of the first, which sums many scales.
        mean = jnp.mean(scales)
        mean = mean + jnp.mean(scales - mean)
        flat = (scales - mean).reshape(1, -1)
        codes, largest = _coded_blocks(flat, _SECOND_BLOCK, dynamic_tree_8())
        return codes.reshape(scales.shape), _as_bits(largest[0]), _as_bits(mean)

    def scales(self, encoded: Encoded, rows: Rows | None) -> Float[Array, "n blocks"]:
        if not self.double:
            return _as_floats(_at(encoded[0], rows))
        codes, largest, mean = encoded
        numbers = jnp.arange(len(codes)) if rows is None else rows
        flat = numbers[:, None] * codes.shape[1] + jnp.arange(codes.shape[1])[None]
        codes, second_scales = _at(codes, rows), _as_floats(largest)[flat // _SECOND_BLOCK]
        # On a mesh with explicit axes, the scales are sharded like their codes.
        book, sharding = jnp.asarray(dynamic_tree_8()), jax.typeof(codes).sharding
        return book.at[codes].get(out_sharding=sharding) * second_scales + _as_floats(mean)


class NormalFloat4(FourBits):
    """NF4: quantiles of the normal distribution.

    Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314.
    """

    name = "nf4"
    book = NORMAL_FLOAT_4


class Int4(FourBits):
    """Integers from -7 to 7."""

    name = "int4"
    book = tuple(number / 7 for number in range(-8, 8))


class EightBits(Scheme):
    """One byte per code. A row's scale maps its largest entry to the largest code."""

    largest: ClassVar[int]

    def block_in(self, columns: int) -> int:
        return columns

    def encode(self, W: Matrix) -> tuple[Codes, Encoded]:
        scales = jnp.max(jnp.abs(W), axis=1, keepdims=True) / self.largest
        return self.rounded(W / _divisor(scales)), (_as_bits(scales),)

    @abc.abstractmethod
    def rounded(self, scaled: Matrix) -> Codes:
        """The nearest codes of numbers from `-largest` to `largest`."""

    def scales(self, encoded: Encoded, rows: Rows | None) -> Float[Array, "n 1"]:
        return _as_floats(_at(encoded[0], rows))


class Int8(EightBits):
    """Integers from -127 to 127."""

    name = "int8"
    largest = 127

    def rounded(self, scaled: Matrix) -> Codes:
        return jnp.round(scaled).astype(jnp.int8)

    def levels(self, codes: Codes) -> Matrix:
        return codes.astype(jnp.float32)


class Float8(EightBits):
    """8-bit floating numbers, `float8_e4m3fn`: 3 bits of mantissa, values up to 448."""

    name = "fp8"
    largest = 448

    def rounded(self, scaled: Matrix) -> Codes:
        # Stored as bits, because Equinox would train an array of this dtype.
        return jax.lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), jnp.uint8)

    def levels(self, codes: Codes) -> Matrix:
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(jnp.float32)


def scheme_named(name: object, block: object = 64, double: bool = True) -> Scheme:
    """The scheme of this name. **Raises:** `SelectionError` for wrong arguments."""
    if isinstance(block, bool) or not isinstance(block, int) or block < 2:
        raise SelectionError(f"`block` must be an integer of at least 2, but is {block!r}.")
    all_schemes = (NormalFloat4(block, double), Int4(block, double), Int8(), Float8())
    schemes: dict[str, Scheme] = {scheme.name: scheme for scheme in all_schemes}
    if not isinstance(name, str) or name not in schemes:
        raise SelectionError(f"`scheme` must be one of {', '.join(schemes)}, but is {name!r}.")
    return schemes[name]


def _in_blocks(M: Matrix, block: int) -> Float[Array, "rows blocks block"]:
    return jnp.pad(M, ((0, 0), (0, -M.shape[1] % block))).reshape(len(M), -1, block)


def _coded_blocks(M: Matrix, block: int, book: np.ndarray) -> tuple[Array, Array]:
    """The codes of a matrix, and the largest number of each block, which is the block's scale."""
    blocks = _in_blocks(M, block)
    scales = jnp.max(jnp.abs(blocks), axis=2)
    codes = _nearest_code(blocks / _divisor(scales)[:, :, None], book)
    return codes.reshape(len(M), -1)[:, : M.shape[1]], scales


def _divisor(scales: Array) -> Array:
    """`scales`, with the zeros (of blocks of zeros) replaced by ones."""
    return jnp.where(scales > 0, scales, 1)


def _at(array: Array, rows: Rows | None) -> Array:
    return array if rows is None else array[rows]


def _as_bits(values: Array) -> Array:
    # Integers, so that no filter treats them as parameters and no cast rounds them.
    return jax.lax.bitcast_convert_type(values, jnp.uint32)


def _as_floats(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.float32)


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


def _nearest_code(values: Float[Array, "*axes"], book: np.ndarray) -> UInt8[Array, "*axes"]:
    """The index of the nearest entry of the ascending `book`; of two, the lower index."""
    # Counting instead of searching, because XLA fuses it and allocates only `values` and the codes.
    entries, value = jnp.asarray(book).reshape(*(1,) * values.ndim, -1), values[..., None]
    is_nearer = entries[..., 1:] - value < value - entries[..., :-1]
    return jnp.sum(is_nearer, axis=-1, dtype=jnp.uint8)


def _decoded(codes: UInt8[Array, "*axes"], book: tuple[float, ...]) -> Float[Array, "*axes"]:
    """`book[codes]` for 16 entries, by selections, which XLA fuses, instead of a table."""
    entries = [jnp.float32(value) for value in book]
    for bit in range(4):
        is_odd = (codes >> jnp.uint8(bit)) & jnp.uint8(1) == 1
        pairs = zip(entries[::2], entries[1::2], strict=True)
        entries = [jnp.where(is_odd, odd, even) for even, odd in pairs]
    return entries[0]

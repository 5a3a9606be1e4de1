"""Quantisation schemes: how a matrix becomes integers, and how these become a matrix again."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from jno.lora import SelectionError

from ._code_books import NORMAL_FLOAT_4, chosen, dynamic_tree_8, nearest_code

Matrix = Float[Array, "rows columns"]
Codes = Integer[Array, "rows bytes"]
Rows = Integer[Array, " n"]
# The arrays that the scales are made of, all of them integers.
Parts = tuple[Array, ...]

# Scales that share one scale of their own, as in bitsandbytes.
_SECOND_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Scheme(abc.ABC):
    """`W[i, j] = level(codes[i, j]) scale[i, j // block]`. Blocks lie in the rows of a matrix.

    So rows can be read, and sharded, alone. A row that no block divides ends in a shorter one.
    """

    # The name by which `quantize` knows the scheme.
    name: ClassVar[str]

    @abc.abstractmethod
    def block_in(self, columns: int) -> int:
        """The number of columns that share a scale, in a row of this length."""

    @abc.abstractmethod
    def encode(self, W: Matrix) -> tuple[Codes, Parts]:
        """The codes and the parts of the scales of a float32 matrix."""

    @abc.abstractmethod
    def levels(self, codes: Codes) -> Matrix:
        """The number that each code stands for, in float32."""

    @abc.abstractmethod
    def scales(self, parts: Parts, rows: Rows | None) -> Float[Array, "n blocks"]:
        """The scales of these rows, or of all, in float32."""

    def decode(self, codes: Codes, parts: Parts, columns: int, rows: Rows | None = None) -> Matrix:
        """The matrix, or these rows of it, whose codes are given, in float32."""
        block, scales = self.block_in(columns), self.scales(parts, rows)
        levels = self.levels(codes)[:, :columns]
        rest = scales.shape[1] * block - columns
        blocks = jnp.pad(levels, ((0, 0), (0, rest))).reshape(*scales.shape, block)
        return (blocks * scales[:, :, None]).reshape(len(codes), -1)[:, :columns]

    def blocks_of(self, W: Matrix) -> Float[Array, "rows blocks block"]:
        """The blocks of the rows, the last one filled up by zeros."""
        block = self.block_in(W.shape[1])
        return jnp.pad(W, ((0, 0), (0, -W.shape[1] % block))).reshape(len(W), -1, block)


@dataclasses.dataclass(frozen=True)
class FourBits(Scheme):
    """Codes of 16 numbers from -1 to 1, scaled by the largest entry of a block.

    The first of two codes is in the high half of a byte. With `double`, scales are 8-bit codes of
    their difference from their mean, scaled by the largest of 256 scales, as in QLoRA.
    """

    # The numbers, ascending. Zero is one of them.
    book: ClassVar[tuple[float, ...]]

    block: int = 64
    double: bool = True

    def block_in(self, columns: int) -> int:
        return min(self.block, columns)

    def encode(self, W: Matrix) -> tuple[UInt8[Array, "rows bytes"], Parts]:
        blocks = self.blocks_of(W)
        scales = jnp.max(jnp.abs(blocks), axis=2)
        unit = blocks / _divisor(scales)[:, :, None]
        codes = nearest_code(unit, np.asarray(self.book, np.float32)).reshape(len(W), -1)
        # Codes of zeros, so that each byte has two.
        zero = self.book.index(0.0)
        codes = jnp.pad(codes, ((0, 0), (0, codes.shape[1] % 2)), constant_values=zero)
        codes = codes[:, : W.shape[1] + W.shape[1] % 2]
        packed = (codes[:, ::2] << jnp.uint8(4)) | codes[:, 1::2]
        return packed, self._encode_scales(scales) if self.double else (_as_bits(scales),)

    def levels(self, codes: UInt8[Array, "rows bytes"]) -> Matrix:
        # Entry by entry, without a concatenation of halves or a table: XLA fuses it with what
        # follows, and vectorises it.
        half = jax.lax.broadcasted_iota(jnp.int32, (*codes.shape, 2), 2)
        byte = codes[:, :, None]
        pairs = jnp.where(half == 0, byte >> jnp.uint8(4), byte & jnp.uint8(15))
        return chosen(pairs, self.book).reshape(len(codes), -1)

    def _encode_scales(self, scales: Float[Array, "rows blocks"]) -> Parts:
        # Twice, so that the sum of many scales is not rounded much.
        mean = jnp.mean(scales)
        mean = mean + jnp.mean(scales - mean)
        flat = (scales - mean).reshape(-1)
        seconds = jnp.pad(flat, (0, -flat.size % _SECOND_BLOCK)).reshape(-1, _SECOND_BLOCK)
        largest = jnp.max(jnp.abs(seconds), axis=1)
        codes = nearest_code(seconds / _divisor(largest)[:, None], dynamic_tree_8())
        codes = codes.reshape(-1)[: flat.size].reshape(scales.shape)
        return codes, _as_bits(largest), _as_bits(mean)

    def scales(self, parts: Parts, rows: Rows | None) -> Float[Array, "n blocks"]:
        if not self.double:
            return _as_floats(_at(parts[0], rows))
        codes, largest, mean = parts
        numbers = jnp.arange(len(codes)) if rows is None else rows
        flat = numbers[:, None] * codes.shape[1] + jnp.arange(codes.shape[1])[None]
        second, own = _as_floats(largest)[flat // _SECOND_BLOCK], _at(codes, rows)
        # The codes decide where the scales lie, on a mesh whose axes are explicit.
        book = jnp.asarray(dynamic_tree_8()).at[own].get(out_sharding=jax.typeof(own).sharding)
        return book * second + _as_floats(mean)


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
    """One code a byte. The scale of a row gives its largest entry the largest code."""

    def block_in(self, columns: int) -> int:
        return columns

    def scales(self, parts: Parts, rows: Rows | None) -> Float[Array, "n 1"]:
        return _as_floats(_at(parts[0], rows))

    @staticmethod
    def scaled_to(largest: int, W: Matrix) -> tuple[Matrix, Parts]:
        """`W`, scaled such that the largest entry of each row is `largest`, and the scales."""
        scales = jnp.max(jnp.abs(W), axis=1, keepdims=True) / largest
        return W / _divisor(scales), (_as_bits(scales),)


class Int8(EightBits):
    """Integers from -127 to 127."""

    name = "int8"

    def encode(self, W: Matrix) -> tuple[Codes, Parts]:
        scaled, scales = self.scaled_to(127, W)
        return jnp.round(scaled).astype(jnp.int8), scales

    def levels(self, codes: Codes) -> Matrix:
        return codes.astype(jnp.float32)


class Float8(EightBits):
    """Floating numbers of 8 bits, `float8_e4m3fn`: three of the mantissa, and up to 448."""

    name = "fp8"

    def encode(self, W: Matrix) -> tuple[Codes, Parts]:
        scaled, scales = self.scaled_to(448, W)
        # As their bits: Equinox would take this dtype for one that trains.
        return jax.lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), jnp.uint8), scales

    def levels(self, codes: Codes) -> Matrix:
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(jnp.float32)


def scheme_named(name: Any, block: Any = 64, double: Any = True) -> Scheme:
    """The scheme of this name. **Raises:** `SelectionError` for wrong arguments."""
    if isinstance(block, bool) or not isinstance(block, int) or block < 2:
        raise SelectionError(f"`block` must be an integer of at least 2, but is {block!r}.")
    if not isinstance(double, bool):
        raise SelectionError(f"`double` must be True or False, but is {double!r}.")
    made: tuple[Scheme, ...] = (NormalFloat4(block, double), Int4(block, double), Int8(), Float8())
    known = {scheme.name: scheme for scheme in made}
    if not isinstance(name, str) or name not in known:
        raise SelectionError(f"`scheme` must be one of {', '.join(known)}, but is {name!r}.")
    return known[name]


def _divisor(scales: Array) -> Array:
    """`scales`, with ones for the zeros of blocks that are zero."""
    return jnp.where(scales > 0, scales, 1)


def _at(array: Array, rows: Rows | None) -> Array:
    return array if rows is None else array[rows]


def _as_bits(values: Array) -> Array:
    # Integers: no filter takes them for parameters, and no cast rounds them.
    return jax.lax.bitcast_convert_type(values, jnp.uint32)


def _as_floats(bits: Any) -> Array:
    return jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.float32)

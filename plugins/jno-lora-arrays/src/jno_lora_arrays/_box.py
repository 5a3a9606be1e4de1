"""Declared arrays, which adapters treat as layers, and their kind of layer."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper, SelectionError, WrapperError
from jno_lora_zoo import (
    LayerKind,
    Map,
    MeshAxes,
    cast_like,
    describe,
    in_compute_dtype,
    is_float_array,
    sharded_over,
    unchanged,
)

INPUTS = "ie"  # the letters of input axes


def _not_an_array(*_: object) -> Array:
    raise SelectionError(
        "A declared array cannot be used as an array. Call the function by `through`, with the "
        "declared arrays in its arguments: through(apply)(net.module, x). Or take `plain`."
    )


class NotAnArray:
    """Raises an error where a box is used as an array: by JAX functions, operators or indices."""

    __jax_array__ = _not_an_array  # called by functions of JAX that expect an array
    __getitem__ = __neg__ = __pow__ = _not_an_array
    __add__ = __radd__ = __sub__ = __rsub__ = _not_an_array
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _not_an_array
    __matmul__ = __rmatmul__ = _not_an_array


class DeclaredArray(NotAnArray, eqx.Module):
    """An array of a model, with the meaning of its axes, as `jno_lora_arrays.declare` makes it.

    A call maps values of the input axes to values of the output axes. Models do not call it,
    because `through` computes the model's own function. `plain` returns the bare array.

    - `array`: the real values, with the axes of a stack first.
    - `axes`: one letter for each axis of the bare array, as `declare` takes them. A complex array
        has one more `s` in front, because its two parts are a stack of two real arrays.
    - `is_complex`: whether the bare array is complex.
    """

    array: Any
    axes: str = eqx.field(static=True)
    is_complex: bool = eqx.field(static=True, default=False)

    @classmethod
    def of(cls, plain: Any, axes: str) -> "DeclaredArray":
        """The box of a bare array with these axes."""
        is_complex = jnp.iscomplexobj(plain)
        if is_complex:
            plain, axes = jnp.stack([jnp.real(plain), jnp.imag(plain)]), f"s{axes}"
        return cls(_transposed(plain, _stack_first(axes)), axes, is_complex)

    def plain(self) -> Any:
        """The bare array."""
        return self.joined(self.in_order())

    def in_order(self) -> Any:
        """The real values, with their axes in the order of the bare array."""
        return _transposed(self.array, np.argsort(_stack_first(self.axes)).tolist())

    def joined(self, in_order: Any) -> Any:
        """The bare array, from the values that `in_order` returns."""
        return lax.complex(in_order[0], in_order[1]) if self.is_complex else in_order

    @property
    def own_axes(self) -> str:
        """The letters of one slice of a stack."""
        return self.axes.replace("s", "")

    def sizes(self, letters: str) -> tuple[int, ...]:
        """The sizes of the axes of one slice with these letters."""
        axes = axes_with(letters, self.own_axes)
        return tuple(self.array.shape[axis - len(self.own_axes)] for axis in axes)

    def matrix(self) -> Array:
        """The array as an `(out, in)` matrix, in its own dtype; for a stack, one per slice."""
        stack = self.array.ndim - len(self.own_axes)
        order = [*range(stack), *(stack + axis for axis in _outputs_first(self.own_axes))]
        moved = self.array.transpose(order)
        return moved.reshape(*self.array.shape[:stack], math.prod(self.sizes("o")), -1)

    def with_matrix(self, matrix: Array) -> "DeclaredArray":
        """A box with the same axes for an `(out, in)` matrix."""
        array = matrix.reshape(self.sizes("o") + self.sizes(INPUTS))
        order = np.argsort(_outputs_first(self.own_axes))
        return DeclaredArray(array.transpose(order), self.axes, self.is_complex)

    def __call__(self, x: Array) -> Array:
        """The values of the output axes, for the values `x` of the input axes."""
        return (jnp.asarray(self.matrix()) @ jnp.reshape(x, -1)).reshape(self.sizes("o"))

    @property
    def weight(self) -> Array:
        """The matrix, for tools that read layers."""
        return self.matrix()

    def linear_features(self) -> tuple[int, int]:
        """The outputs and inputs of a slice, which PEFT's files store as a linear layer."""
        return math.prod(self.sizes("o")), math.prod(self.sizes(INPUTS))


class ArrayLayer(NotAnArray, LayerKind):
    """A `DeclaredArray`: any array whose axes are declared as inputs, outputs and a stack.

    The rows of the matrix are the output axes, in their order, and the columns are the input axes.
    For example, the kernel `(in, heads, size)` of attention, `"ioo"`, has one row for each place of
    each head, and the kernel `(height, width, in, out)` of a convolution, `"iiio"`, has one row for
    each channel.
    """

    @classmethod
    def fits(cls, leaf: object) -> bool:
        if type(leaf) is not DeclaredArray or not is_float_array(leaf.array):
            return False
        return leaf.array.ndim == len(leaf.axes) and 0 not in leaf.array.shape

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if type(leaf) is not DeclaredArray:
            return None
        return f"it is {describe(leaf.array)}, declared with the axes {leaf.axes!r}"

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.array.ndim - len(leaf.own_axes)

    @classmethod
    def matrix(cls, layer: DeclaredArray) -> Float[Array, "out in"]:
        return in_compute_dtype(layer.matrix())

    @classmethod
    def with_matrix(cls, base: DeclaredArray, matrix: Float[Array, "out in"]) -> eqx.Module:
        return base.with_matrix(cast_like(matrix, base.array))

    @classmethod
    def mesh_axes(cls, base: DeclaredArray) -> MeshAxes:
        stack = cls.stack_ndim(base)
        mesh_axes = sharded_over(base.array)

        def joined(letters: str) -> Any:
            # If several axes are joined, only the first can stay sharded as it was.
            first, *later = (mesh_axes[stack + n] for n in axes_with(letters, base.own_axes))
            return None if any(later) else first

        return MeshAxes(mesh_axes[:stack], joined("o"), joined(INPUTS))

    def fan_in(self, W: Float[Array, "out in"]) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A lookup reads one column, as in `EmbeddingLayer`.
        return W.shape[1] // math.prod(self.base.sizes("e"))

    def computes(self, x: ArrayLike) -> bool:
        return type(self.base) is DeclaredArray and jnp.shape(x) == self.base.sizes(INPUTS)

    def product(self, x: ArrayLike, before: Map = unchanged) -> Array:
        return jnp.asarray(self.base.matrix()) @ before(self.vector(x))

    def reads_features(self) -> bool:
        return True

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        return super().inputs_of(layer, jnp.reshape(args[0], -1))

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        return super().outputs_of(layer, jnp.reshape(y, -1))

    def finish(self, y: Array, b: Float[Array, " out"] | None) -> Array:
        return y.reshape(self.base.sizes("o"))

    def vector(self, x: ArrayLike) -> Array:
        x = jnp.reshape(jnp.asarray(x), -1)
        return x.astype(jnp.result_type(x.dtype, self.base.array.dtype))


def is_declared(node: object) -> bool:
    """Whether `node` is a declared array, adapted or not."""
    return type(unadapted(node)) is DeclaredArray


def unadapted(node: Any) -> Any:
    return node.base if issubclass(type(node), LoRAWrapper) else node


def refuse_dropout(leaf: object) -> None:
    """**Raises:** `WrapperError` if `leaf` has an adapter with dropout that is switched on."""
    dropout = getattr(leaf, "dropout", None)
    if dropout is not None and not dropout.inference:
        raise WrapperError(
            f"A {type(leaf).__name__} was built with `dropout`, which acts on the inputs of "
            "one use of a layer, and an array has any number of uses. Leave `dropout` out, or "
            "switch it off by `eqx.nn.inference_mode(model)`."
        )


def axes_with(letters: str, axes: str) -> list[int]:
    return [position for position, letter in enumerate(axes) if letter in letters]


def _stack_first(axes: str) -> list[int]:
    """The order of the axes of a bare array in its box."""
    return axes_with("s", axes) + axes_with("oie", axes)


def _outputs_first(axes: str) -> list[int]:
    """The order of the axes of a slice in its matrix."""
    return axes_with("o", axes) + axes_with(INPUTS, axes)


def _transposed(array: Any, order: Sequence[int]) -> Any:
    return array if order == sorted(order) else array.transpose(order)

"""Declared arrays: bare arrays that adapters see as layers."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from jno.lora import LoRAWrapper, SelectionError

INPUTS = "ie"  # the letters of input axes


def _not_an_array(*_: Any) -> Array:
    raise SelectionError(
        "A declared array cannot be used as an array. Call the function by `through`, with the "
        "declared arrays in its arguments: through(apply)(net.module, x). Or take `plain`."
    )


class NotAnArray:
    """The uses of an array that a box refuses: by functions of JAX, Python's operators, indices."""

    __jax_array__ = _not_an_array  # called by functions of JAX that expect an array
    __getitem__ = __neg__ = __pow__ = _not_an_array
    __add__ = __radd__ = __sub__ = __rsub__ = _not_an_array
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _not_an_array
    __matmul__ = __rmatmul__ = _not_an_array


class DeclaredArray(NotAnArray, eqx.Module):
    """An array of a model, with the meaning of its axes. `jno_lora_arrays.declare` makes them.

    Called with the values of its input axes, it gives the values of its output axes. Models do not
    call it: `through` computes the model's own function, and `plain` gives the bare array back.

    - `array`: the values, with the axes of a stack first.
    - `axes`: one letter for each axis of the bare array. `o` is an output, `i` an input, `s` an
        axis of a stack, whose slices are adapted separately, and `e` an input that is looked up by
        number, such as the words of an embedding.
    """

    array: Any
    axes: str = eqx.field(static=True)

    @classmethod
    def of(cls, plain: Any, axes: str) -> "DeclaredArray":
        """The box of a bare array with these axes."""
        order = _stack_first(axes)
        is_sorted = order == sorted(order)
        return cls(plain if is_sorted else plain.transpose(order), axes)

    def plain(self) -> Any:
        """The bare array."""
        order = _stack_first(self.axes)
        return self.array if order == sorted(order) else self.array.transpose(_inverse(order))

    @property
    def own_axes(self) -> str:
        """The letters of one slice of a stack."""
        return self.axes.replace("s", "")

    def sizes(self, letters: str) -> tuple[int, ...]:
        """The sizes of the axes of one slice with these letters."""
        slice_shape = self.array.shape[self.array.ndim - len(self.own_axes) :]
        return tuple(slice_shape[axis] for axis in axes_with(letters, self.own_axes))

    def matrix(self) -> Array:
        """The array as an `(out, in)` matrix, in its own dtype; of a stack, for each slice."""
        stack = self.array.ndim - len(self.own_axes)
        order = [*range(stack), *(stack + axis for axis in _outputs_first(self.own_axes))]
        moved = self.array.transpose(order)
        return moved.reshape(*self.array.shape[:stack], math.prod(self.sizes("o")), -1)

    def with_matrix(self, matrix: Array) -> "DeclaredArray":
        """A box with the same axes for an `(out, in)` matrix."""
        array = matrix.reshape(self.sizes("o") + self.sizes(INPUTS))
        return DeclaredArray(array.transpose(_inverse(_outputs_first(self.own_axes))), self.axes)

    def __call__(self, x: Array) -> Array:
        """The values of the output axes, for the values `x` of the input axes."""
        return (jnp.asarray(self.matrix()) @ jnp.reshape(x, -1)).reshape(self.sizes("o"))

    @property
    def weight(self) -> Array:
        """The matrix, for tools that read layers."""
        return self.matrix()

    def linear_features(self) -> tuple[int, int]:
        """The outputs and inputs of a slice, which files of PEFT hold as a linear layer."""
        return math.prod(self.sizes("o")), math.prod(self.sizes(INPUTS))


def is_declared(node: Any) -> bool:
    """Whether `node` is a declared array, adapted or not."""
    return type(unadapted(node)) is DeclaredArray


def unadapted(node: Any) -> Any:
    """The layer inside of an adapter, or `node` itself."""
    return node.base if issubclass(type(node), LoRAWrapper) else node


def axes_with(letters: str, axes: str) -> list[int]:
    """The positions in `axes` of these letters."""
    return [position for position, letter in enumerate(axes) if letter in letters]


def _stack_first(axes: str) -> list[int]:
    """The order of the axes of a bare array in its box."""
    return axes_with("s", axes) + axes_with("oie", axes)


def _outputs_first(axes: str) -> list[int]:
    """The order of the axes of a slice in its matrix."""
    return axes_with("o", axes) + axes_with(INPUTS, axes)


def _inverse(order: list[int]) -> list[int]:
    """The order of axes that undoes this order."""
    return sorted(range(len(order)), key=order.__getitem__)

"""Declared arrays: bare arrays that adapters see as layers, and the kind of layer that they are."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper, SelectionError
from jno_lora_zoo import (
    LayerKind,
    Map,
    MeshAxes,
    Update,
    cast_like,
    describe,
    in_compute_dtype,
    is_float_array,
    sharded_over,
    unchanged,
)

INPUTS = "ie"  # the letters of input axes


def _not_an_array(*_: Any) -> Array:
    raise SelectionError(
        "A declared array cannot be used as an array. Call the function by `through`, with the "
        "declared arrays in its arguments: through(apply)(net.module, x). Or take `plain`."
    )


class NotAnArray:
    """The uses of an array that a box refuses: by functions of JAX, Python's operators, indices."""

    __jax_array__ = _not_an_array  # what JAX asks where a function takes the box for its array
    __getitem__ = __neg__ = __pow__ = _not_an_array
    __add__ = __radd__ = __sub__ = __rsub__ = _not_an_array
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _not_an_array
    __matmul__ = __rmatmul__ = _not_an_array


class DeclaredArray(NotAnArray, eqx.Module):
    """An array of a model, with the meaning of its axes. `jno_lora_arrays.declare` makes them.

    Called with the values of its input axes, it gives those of its output axes. A model does not
    call it: `through` computes the model's own function, and `plain` gives the bare array back.

    - `array`: the values, with the axes of a stack first.
    - `axes`: one letter for each axis of the bare array. `o` is an output, `i` an input, `s` an
        axis of a stack, whose slices are adapted each on its own, and `e` an input of which a use
        reads single entries, by number: the words of an embedding.
    """

    array: Any
    axes: str = eqx.field(static=True)

    @classmethod
    def of(cls, plain: Any, axes: str) -> "DeclaredArray":
        """The box of a bare array with these axes."""
        order = [*places(axes, "s"), *places(axes, "oie")]
        is_sorted = order == sorted(order)
        return cls(plain if is_sorted else plain.transpose(order), axes)

    def plain(self) -> Any:
        """The bare array."""
        order = [*places(self.axes, "s"), *places(self.axes, "oie")]
        return self.array if order == sorted(order) else self.array.transpose(inverse(order))

    @property
    def own_axes(self) -> str:
        """The letters of one slice of a stack."""
        return self.axes.replace("s", "")

    def sizes(self, letters: str) -> tuple[int, ...]:
        """The sizes of the axes of one slice with these letters."""
        own = self.array.shape[self.array.ndim - len(self.own_axes) :]
        return tuple(own[place] for place in places(self.own_axes, letters))

    def matrix(self) -> Array:
        """The array as an `(out, in)` matrix, in its own dtype; of a stack, for each slice."""
        first = self.array.ndim - len(self.own_axes)
        order = [*places(self.own_axes, "o"), *places(self.own_axes, INPUTS)]
        moved = self.array.transpose([*range(first), *(first + place for place in order)])
        return moved.reshape(*self.array.shape[:first], math.prod(self.sizes("o")), -1)

    def with_matrix(self, matrix: Array) -> "DeclaredArray":
        """The box of another matrix, `(out, in)`."""
        own = self.own_axes
        order = [*places(own, "o"), *places(own, INPUTS)]
        array = matrix.reshape(self.sizes("o") + self.sizes(INPUTS)).transpose(inverse(order))
        return DeclaredArray(array, self.axes)

    def __call__(self, x: Array) -> Array:
        """The product with the values `x` of the input axes: those of the output axes."""
        return (jnp.asarray(self.matrix()) @ jnp.reshape(x, -1)).reshape(self.sizes("o"))

    @property
    def weight(self) -> Array:
        """The matrix, for tools that read layers."""
        return self.matrix()

    def linear_features(self) -> tuple[int, int]:
        """The outputs and inputs of one slice: files of PEFT hold it as a linear layer."""
        return math.prod(self.sizes("o")), math.prod(self.sizes(INPUTS))


def is_declared(node: Any) -> bool:
    """Whether `node` is a declared array, adapted or not."""
    return type(unadapted(node)) is DeclaredArray


def unadapted(node: Any) -> Any:
    """The layer inside of an adapter, or `node` itself."""
    return node.base if issubclass(type(node), LoRAWrapper) else node


def places(axes: str, letters: str) -> list[int]:
    """The places of the axes that have one of these letters."""
    return [place for place, letter in enumerate(axes) if letter in letters]


def inverse(order: list[int]) -> list[int]:
    """The order of axes that undoes this one."""
    return sorted(range(len(order)), key=order.__getitem__)


class ArrayLayer(NotAnArray, LayerKind):
    """A `DeclaredArray`: any array whose axes are declared as inputs, outputs and a stack.

    The matrix has the output axes, in their order, as rows and the input axes as columns. So the
    kernel `(in, heads, size)` of an attention, `"ioo"`, has one row for each head and place in it,
    and `"iiio"`, a kernel `(height, width, in, out)` of a convolution, one row for each channel.
    """

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        if type(leaf) is not DeclaredArray or not is_float_array(leaf.array):
            return False
        return leaf.array.ndim == len(leaf.axes) and 0 not in leaf.array.shape

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        if type(leaf) is not DeclaredArray:
            return None
        return f"it is {describe(leaf.array)}, declared with the axes {leaf.axes!r}"

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        """The axes of a stack, which come first."""
        return leaf.array.ndim - len(leaf.own_axes)

    @classmethod
    def matrix(cls, layer: Any) -> Float[Array, "out in"]:
        return in_compute_dtype(layer.matrix())

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        return base.with_matrix(cast_like(matrix, base.array))

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        # An axis that is one of several joined into one cannot be cut as it was, unless it is the
        # first of them.
        over, first = sharded_over(base.array), cls.stack_ndim(base)
        own = over[first:]

        def joined(letters: str) -> Any:
            cut = [own[place] for place in places(base.own_axes, letters)]
            return None if any(cut[1:]) else cut[0]

        return MeshAxes(over[:first], joined("o"), joined(INPUTS))

    def fan_in(self, W: Float[Array, "out in"]) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A lookup reads one column, as in `EmbeddingLayer`.
        looked_up = math.prod(self.base.sizes("e"))  # pyright: ignore[reportAttributeAccessIssue]
        return W.shape[1] // looked_up

    def computes(self, x: Any) -> bool:
        base: Any = self.base
        return type(base) is DeclaredArray and jnp.shape(x) == base.sizes(INPUTS)

    def product(self, x: Any, before: Map = unchanged) -> Array:
        base: Any = self.base
        return jnp.asarray(base.matrix()) @ before(self._vector(x))

    def reads_features(self) -> bool:
        return True

    def down(self, x: Any, A: Float[Array, "r in"]) -> Array:
        x = self._vector(x)
        return x @ A.T.astype(x.dtype)

    def plus(self, x: Any, U: Update) -> Array:
        if U.times is not None:
            return self.product(x) + U.times(self._vector(x))
        vector = self._vector(x)
        return self.product(x) + U.matrix().astype(vector.dtype) @ vector

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        return super().inputs_of(layer, jnp.reshape(args[0], -1))

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        return super().outputs_of(layer, jnp.reshape(y, -1))

    def finish(self, y: Array, b: Float[Array, " out"] | None) -> Array:
        base: Any = self.base
        return y.reshape(base.sizes("o"))

    def _vector(self, x: Any) -> Array:
        x = jnp.reshape(jnp.asarray(x), -1)
        base: Any = self.base
        return x.astype(jnp.result_type(x.dtype, base.array.dtype))

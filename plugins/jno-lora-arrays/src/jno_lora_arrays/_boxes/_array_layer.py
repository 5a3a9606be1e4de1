"""The kind of layer that declared arrays are."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

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

from ._box import INPUTS, DeclaredArray, NotAnArray, axes_with


class ArrayLayer(NotAnArray, LayerKind):
    """A `DeclaredArray`: any array whose axes are declared as inputs, outputs and a stack.

    The rows of the matrix are the output axes, in their order, and the columns are the input axes.
    So the kernel `(in, heads, size)` of an attention, `"ioo"`, has one row for each head and each
    place in it, and a kernel `(height, width, in, out)` of a convolution, `"iiio"`, has one row for
    each channel.
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
        """The number of axes of a stack, which come first."""
        return leaf.array.ndim - len(leaf.own_axes)

    @classmethod
    def matrix(cls, layer: Any) -> Float[Array, "out in"]:
        return in_compute_dtype(layer.matrix())

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        return base.with_matrix(cast_like(matrix, base.array))

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        stack = cls.stack_ndim(base)
        mesh_axes = sharded_over(base.array)

        def joined(letters: str) -> Any:
            # Of several axes that are joined, only the first can stay sharded as it was.
            first, *later = (mesh_axes[stack + n] for n in axes_with(letters, base.own_axes))
            return None if any(later) else first

        return MeshAxes(mesh_axes[:stack], joined("o"), joined(INPUTS))

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
        x = self._vector(x)
        update = U.matrix().astype(x.dtype) @ x if U.times is None else U.times(x)
        return self.product(x) + update

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

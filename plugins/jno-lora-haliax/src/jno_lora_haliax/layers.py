"""The kinds of layer of Haliax. Their weights have named axes, of which a matrix has two groups."""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno_lora_zoo import (
    Bias,
    ByName,
    LayerKind,
    Map,
    Matrix,
    MeshAxes,
    Update,
    compute_dtype,
    describe,
    dtype_of,
    in_compute_dtype,
    in_form_of,
    is_float_array,
    mixed,
    sharded_over,
    unchanged,
)

from ._classes import (
    HaliaxArray,
    HaliaxConv,
    HaliaxEmbedding,
    HaliaxLayer,
    HaliaxLinear,
    haliax,
)


class NamedLayer(LayerKind):
    """A layer with a `weight: NamedArray`.

    The matrix is `(out, in)`: the axes of the outputs are flattened to its rows and the axes of the
    inputs to its columns, in the order in which the layer declares them. How the weight orders its
    axes does not matter, so an adapter's arrays fit both values of `out_first`. Axes that the layer
    does not declare are the axes of a stack (`haliax.nn.Stacked`).

    A parametrisation (`reparam`) that multiplies the weight by a constant counts as a part of the
    matrix, so that an update has the size that it has in an ordinary layer.
    """

    # Stands for the class of the layer.
    layer_class: ClassVar[type[HaliaxLayer]]

    @classmethod
    @abc.abstractmethod
    def groups_of_axes(cls, layer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the axes of the outputs, and of the inputs."""

    @classmethod
    def fits(cls, leaf: object) -> bool:
        return isinstance(leaf, cls.layer_class) and cls.misfit(leaf) is None

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, cls.layer_class):
            return None
        if not isinstance(leaf.weight, HaliaxArray):
            return f"its weight is a {type(leaf.weight).__name__}, not a NamedArray"
        if not is_float_array(leaf.weight.array) or 0 in leaf.weight.array.shape:
            return f"its weight is {describe(leaf.weight.array)}, not floating or empty"
        names, last = [axis.name for axis in leaf.weight.axes], _own_axes(cls, leaf)
        if names[-len(last) :] != last:
            return f"the axes of its weight are {names}, of which the last must be {last}"
        return None

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight.array.ndim - len(_own_axes(cls, leaf))

    @classmethod
    def stored_matrix(cls, layer: HaliaxLayer) -> Float[Array, "*stack out in"]:
        """The matrix, or the matrices of a stack, in the weight's dtype and without its scale."""
        order, outputs = _order(cls, layer), len(cls.groups_of_axes(layer)[0])
        array = layer.weight.array
        stack = array.ndim - len(order)
        array = jnp.transpose(array, (*range(stack), *(stack + axis for axis in order)))
        rows = math.prod(array.shape[stack : stack + outputs])
        return array.reshape(*array.shape[:stack], rows, -1)

    @classmethod
    def matrix(cls, layer: HaliaxLayer) -> Matrix:
        return scaled_by_layer(layer, in_compute_dtype(cls.stored_matrix(layer)))

    @classmethod
    def with_matrix(cls, base: HaliaxLayer, matrix: Matrix) -> eqx.Module:
        order, array = _order(cls, base), base.weight.array
        sizes = [array.shape[axis] for axis in order]
        new = (matrix / _scale(base)).reshape(sizes)
        new = jnp.transpose(new, sorted(range(len(order)), key=order.__getitem__))
        return eqx.tree_at(lambda m: m.weight.array, base, in_form_of(new, array))

    @classmethod
    def bias_of(cls, layer: object) -> Bias | None:
        bias = getattr(layer, "bias", None)
        return jnp.asarray(bias.array).reshape(-1) if isinstance(bias, HaliaxArray) else None

    @classmethod
    def replace_bias(cls, base: Any, bias: Bias) -> eqx.Module:
        return eqx.tree_at(lambda m: m.bias.array, base, in_form_of(bias, base.bias.array))

    @classmethod
    def mesh_axes(cls, base: HaliaxLayer) -> MeshAxes:
        stack = cls.stack_ndim(base)
        axes = sharded_over(base.weight.array)
        meshes = [axes[stack + i] for i in _order(cls, base)]
        outputs = len(cls.groups_of_axes(base)[0])
        return MeshAxes(tuple(axes[:stack]), _slowest(meshes[:outputs]), _slowest(meshes[outputs:]))

    @classmethod
    def inputs_of(cls, layer: HaliaxLayer, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        return _rows(args[0], cls.groups_of_axes(layer)[1])

    @classmethod
    def outputs_of(cls, layer: HaliaxLayer, y: HaliaxArray) -> Float[Array, "n out"]:
        return _rows(y, cls.groups_of_axes(layer)[0])

    def finish(self, y: Array, b: Bias | None) -> Array:
        return y if b is None else y + b.reshape(-1, *(1,) * (y.ndim - 1))

    def written(self, y: Array, x: HaliaxArray) -> HaliaxArray:
        outputs, inputs = self.groups_of_axes(self.base)
        features = [self.base.weight.resolve_axis(name) for name in outputs]
        batch = [axis for axis in x.axes if axis.name not in inputs]
        array = jnp.moveaxis(y, 0, -1).reshape([axis.size for axis in (*batch, *features)])
        return haliax().auto_sharded(haliax().named(array, (*batch, *features)))

    def output_axis(self, *args: object) -> int | None:
        return None  # the output is no plain array


class HaliaxLinearLayer(NamedLayer):
    """`haliax.nn.Linear`, with any number of input and output axes, in either order."""

    layer_class = HaliaxLinear

    @classmethod
    def groups_of_axes(cls, layer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _names(layer.Out), _names(layer.In)

    def computes(self, x: object) -> bool:
        layer = self.base
        if not (isinstance(x, HaliaxArray) and jnp.issubdtype(x.dtype, jnp.floating)):
            return False
        # The layer may use another product, such as FP8's.
        is_plain_product = type(layer.dot_general).__name__ == "DefaultDotGeneralOp"
        if not (_is_exactly(layer, HaliaxLinear) and is_plain_product):
            return False
        # The layer itself refuses other inputs.
        outputs, inputs = self.groups_of_axes(layer)
        names = {axis.name for axis in x.axes}
        return names.issuperset(inputs) and names.isdisjoint(outputs)

    def reads_features(self) -> bool:
        return True

    def read(self, x: HaliaxArray) -> Float[Array, "in *batch"]:
        inputs = self.groups_of_axes(self.base)[1]
        array = x.rearrange((..., *inputs)).array
        array = array.reshape(*array.shape[: array.ndim - len(inputs)], -1)
        array = array.astype(jnp.result_type(array.dtype, dtype_of(self.base.weight.array)))
        return jnp.moveaxis(array, -1, 0)

    def product(self, x: Array, before: Map = unchanged) -> Array:
        weight = scaled_by_layer(self.base, self.stored_matrix(self.base))
        # The outputs are last here, and first in the result: XLA removes this turn of the axes
        # together with the turns of `read` and `written`.
        return jnp.moveaxis(jnp.tensordot(before(x), weight, axes=((0,), (1,))), -1, 0)

    def down(self, x: Array, A: Float[Array, "r in"]) -> Array:
        return mixed(x, A)

    def plus(self, x: Array, U: Update) -> Array:
        if U.times is None:
            return self.product(x) + mixed(x, U.matrix())
        updates = jax.vmap(U.times, in_axes=1, out_axes=1)(x.reshape(len(x), -1))
        return self.product(x) + updates.reshape(-1, *x.shape[1:])


class HaliaxEmbeddingLayer(NamedLayer):
    """`haliax.nn.Embedding`: a lookup is `W e_i`, as for `jno_lora_zoo.EmbeddingLayer`.

    `unembed` of an adapted embedding uses the adapted table.
    """

    layer_class = HaliaxEmbedding

    @classmethod
    def groups_of_axes(cls, layer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _names(layer.Embed), _names(layer.Vocab)

    @classmethod
    def fan_in(cls, W: Float[Array, "out in"]) -> int:
        return 1  # a lookup reads one column

    def computes(self, x: object) -> bool:
        return _is_exactly(self.base, HaliaxEmbedding) and isinstance(x, HaliaxArray)

    def read(self, x: HaliaxArray) -> Array:
        return x.array

    def product(self, x: Array, before: Map = unchanged) -> Array:
        return jnp.take(self.matrix(self.base), x, axis=1)

    def down(self, x: Array, A: Float[Array, "r in"]) -> Array:
        return A[:, x].astype(compute_dtype(self.base.weight.array))

    def plus(self, x: Array, U: Update) -> Array:
        if U.column is None:
            columns = U.matrix()[:, x]
        else:
            columns = jax.vmap(U.column, out_axes=1)(x.reshape(-1)).reshape(-1, *x.shape)
        return self.product(x) + columns.astype(compute_dtype(self.base.weight.array))

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        rows = jnp.arange(layer.Vocab.size)
        return (args[0].array.reshape(-1, 1) == rows[None]).astype(jnp.float32)

    def finish(self, y: Array, b: Bias | None) -> Array:
        return y.astype(dtype_of(self.base.weight.array))


class HaliaxConvLayer(NamedLayer):
    """`haliax.nn.Conv`: a row of the matrix is the kernel of one output channel.

    There is no fast path: the layer itself convolves, with the adapted kernel.
    """

    layer_class = HaliaxConv

    @classmethod
    def groups_of_axes(cls, layer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _names(layer.Out), (*_names(layer.In), *_names(tuple(layer.Spatial)))

    @classmethod
    def group_size(cls, base: Any) -> int | None:
        return None if base.groups == 1 else base.Out.size // base.groups

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        """The patches of all groups, as the outputs of kernels with a single 1."""
        width = cls.matrix(layer).shape[1]
        kernels = jnp.tile(jnp.eye(width, dtype=layer.weight.dtype), (layer.groups, 1))
        out = layer.Out.resize(len(kernels))
        axes = [out, *map(layer.weight.resolve_axis, cls.groups_of_axes(layer)[1])]
        weight = haliax().named(kernels.reshape([axis.size for axis in axes]), axes)
        patches = dataclasses.replace(layer, Out=out, weight=weight, bias=None)(*args, **kwargs)
        return _rows(patches, (out.name,)).reshape(-1, width)


def _names(axes: Any) -> tuple[str, ...]:
    """The names of an axis, or of several."""
    several = axes if isinstance(axes, tuple | list) else (axes,)
    return tuple(axis if isinstance(axis, str) else axis.name for axis in several)


def _own_axes(cls: type[NamedLayer], layer: HaliaxLayer) -> list[str]:
    """The axes of the weight that are no axes of a stack, in the weight's order."""
    outputs, inputs = cls.groups_of_axes(layer)
    return [axis.name for axis in layer.weight.axes if axis.name in (*outputs, *inputs)]


def _order(cls: type[NamedLayer], layer: HaliaxLayer) -> list[int]:
    """Where the layer's axes have the axes of the matrix's rows, and then of its columns."""
    outputs, inputs = cls.groups_of_axes(layer)
    return [_own_axes(cls, layer).index(name) for name in (*outputs, *inputs)]


def _rows(x: HaliaxArray, names: tuple[str, ...]) -> Float[Array, "rows features"]:
    """`x` as rows whose features are the flattened axes of these names."""
    array = x.rearrange((..., *names)).array
    return array.reshape(-1, math.prod(array.shape[array.ndim - len(names) :]))


def _scale(layer: object) -> float:
    reparam = getattr(layer, "reparam", None)
    return 1 if reparam is None else reparam.active_scale


def scaled_by_layer(layer: object, weight: Array) -> Array:
    """The weight with the constant of the layer's parametrisation."""
    scale = _scale(layer)
    return weight if scale == 1 else weight * scale


def _is_exactly(layer: object, cls: ByName) -> bool:
    """Whether the layer is no subclass, whose `__call__` may do more."""
    return (type(layer).__module__, type(layer).__name__) in cls.names


def _slowest(axes: list[Any]) -> Any:
    """The mesh axis of several axes that are flattened: of the first, if only it is sharded."""
    return axes[0] if axes and not any(axes[1:]) else None

"""The operations that methods use on a layer of any kind."""

import abc
import dataclasses
import typing
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import AbstractArray, Array, Float

from jno.lora import LoRAWrapper, MatrixAdapter
from jno.lora.extending import is_coded, row_products

from ._arrays import (
    Matrix,
    MeshAxis,
    cast_like,
    in_compute_dtype,
    in_form_of,
    is_float_array,
    mixed,
    scaled,
    sharded_over,
)


class MeshAxes(NamedTuple):
    """The mesh axes along which a weight's stack, outputs and inputs are sharded."""

    stack: tuple[MeshAxis, ...]
    outputs: MeshAxis
    inputs: MeshAxis


def unchanged(y: Array) -> Array:
    """`y` itself: the default map of `LayerKind.low_rank`."""
    return y


T = TypeVar("T")
Factor = Float[Array, "_ _"]
Bias = Float[Array, " out"]
Map = Callable[[Array], Array]


class Update(NamedTuple):
    """An update `U` of the matrix, as the functions that a method provides to apply it.

    `matrix()` is `U`. `times(v)` is `U v` for features `v`, and `column(i)` is `U[:, i]`, both
    without the whole `U`; `None` if that is not cheaper.

    If `matrix` is a `jax.tree_util.Partial` whose arguments include all arrays that it uses, a
    linear layer stores only these for the backward pass, and recomputes `U` there.
    """

    matrix: Callable[[], Matrix]
    times: Map | None = None
    column: Map | None = None


class KindOfLayer(MatrixAdapter):
    """Decides which layers are of a kind (`fits`, `misfit`), with one or several matrices."""

    @classmethod
    def applies_to(cls, leaf: object) -> bool:
        """Whether `leaf` is a layer of this kind, by `fits`. Never raises."""
        # `isinstance` is slow for modules.
        if not issubclass(type(leaf), eqx.Module) or issubclass(type(leaf), LoRAWrapper):
            return False
        try:
            return bool(cls.fits(leaf))
        except Exception:  # the attributes of a look-alike may have other meanings
            return False

    @classmethod
    @abc.abstractmethod
    def fits(cls, leaf: Any) -> bool:
        """Whether the module `leaf`, not adapted yet, is a layer of this kind."""

    @classmethod
    def why_not(cls, leaf: object) -> str | None:
        """Why `leaf`, which looks like a layer of this kind, is not one. Never raises."""
        try:
            return None if cls.applies_to(leaf) else cls.misfit(leaf)
        except Exception:
            return None

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        """Why a module does not fit; `None` if it is not even similar."""
        return None


class LayerKind(KindOfLayer):
    """One kind of layer: its `(out, in)` matrix `W`, and its linear map in pieces.

    A subclass defines which layers are of its kind (`fits`), the layout of their weight
    (`stack_ndim`, `mesh_axes`), and the operations from `matrix` on, each by its equation. A law
    needs only `matrix` and `with_matrix`. The remaining operations are for fast paths, and are
    called only if `computes(x)`. Otherwise the layer's `__call__` may do more, so the layer gets
    the law's matrix and is called itself.

    `x` is the layer's input: features, or the index of a lookup. Features have the output axis
    (`y`) or the rank axis (`h`) *first*. Operations cast the adapter's arrays to the features'
    dtype. By default, the operations after `product` assume a layer that multiplies one `vector` by
    `W`.
    """

    # The axes of the layer's array `weight`, after the axes of a stack: `o` for outputs, `i` for
    # inputs, `...` for the sizes of a kernel. `None`: the matrix is not stored in one such array.
    weight_axes: ClassVar[str | None] = None

    @classmethod
    @abc.abstractmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        """The mesh axes along which the weight is sharded."""

    def partition_specs(self) -> dict[str, PartitionSpec]:
        """The axes `out` and `in` in a field's annotation are sharded like the weight's."""
        axes = self.mesh_axes(self.base)
        by_name = {"out": axes.outputs, "in": axes.inputs}
        return {
            field.name: PartitionSpec(*axes.stack, *map(by_name.get, annotation.dim_str.split()))
            for field in dataclasses.fields(self)
            for annotation in typing.get_args(field.type) or (field.type,)
            if isinstance(annotation, type) and issubclass(annotation, AbstractArray)
            if getattr(self, field.name) is not None
        }

    @classmethod
    def fan_in(cls, W: Matrix) -> int:
        """The number of inputs that an output sums over, which sets the scale of random factors."""
        return W.shape[1]

    @classmethod
    def group_size(cls, base: Any) -> int | None:
        """How many consecutive outputs read the same inputs; `None` if all read all inputs."""
        return None

    def computes(self, x: Any) -> bool:
        """Whether the operations compute `base(x)`."""
        return False

    @classmethod
    @abc.abstractmethod
    def matrix(cls, layer: Any) -> Matrix:
        """`W`: the weight as an `(out, in)` matrix, in float32 at least."""

    @classmethod
    @abc.abstractmethod
    def with_matrix(cls, base: Any, matrix: Matrix) -> eqx.Module:
        """`matrix(with_matrix(base, W)) == W`, up to the rounding of the weight's dtype."""

    @classmethod
    def row_products(cls, layer: eqx.Module, A: Factor) -> tuple[Array, Array]:
        """`W A^T`, and the squared norm of each row of `W`, in the dtype of `W`."""
        weight = getattr(layer, "weight", None)
        # The rows of codes are the rows of `W` if the outputs come first.
        if is_coded(weight) and (cls.weight_axes or "").startswith("o"):
            return weight.row_products(A)
        W = cls.matrix(layer)
        return row_products(W, A.astype(W.dtype))

    def read(self, x: Any) -> Any:
        """The layer's input `x` as the operations take it, for layers of arrays with named axes."""
        return x

    def written(self, y: Array, x: Any) -> Any:
        """The layer's output for the input `x`, from the result `y` of the operations."""
        return y

    def reads_features(self) -> bool:
        """Whether the first axis of `x` is the input axis of `W`, so that `product` takes a map."""
        return False

    def product(self, x: Any, before: Map = unchanged) -> Array:
        """`W before(x)`, without the bias, for a map that is linear along the input axis.

        Only a layer with `reads_features()` takes a map other than the default.
        """
        raise NotImplementedError

    def vector(self, x: Any) -> Array:
        """The vector that `W` multiplies: `x` itself by default."""
        return jnp.asarray(x)

    def down(self, x: Any, A: Factor) -> Array:
        """`h = A x`: the features of the rank axis."""
        # `v @ A.T`, not `A @ v`, because this is one plain matrix product under `vmap`.
        v = self.vector(x)
        return v @ A.T.astype(v.dtype)

    def low_rank(
        self,
        x: Any,
        A: Factor,
        B: Factor,
        between: Map = unchanged,
        after: Map = unchanged,
        seen: Any = None,
    ) -> Array:
        """`W x + after(B between(A seen))`: the layer's product and a low-rank one.

        **Arguments:**

        - `A`, `B`: the factors, `(r, in)` and `(out, r)`.
        - `between`: a map that is linear along the rank axis.
        - `after`: a map that multiplies each entry of the output axis by a number.
        - `seen`: the input of the low-rank product, `x` unless given.

        A kind may apply both maps to the factors instead.
        """
        # The layer's product comes first, because XLA keeps the order and so needs less memory.
        y = self.product(x)
        return y + after(mixed(between(self.down(x if seen is None else seen, A)), B))

    def on_output(self, x: Any, f: Callable[[Array, T], Array], p: T) -> Array:
        """`f(W x, p)`, for parameters `p` and an `f` that is linear along the output axis.

        `f` may be applied to the rows of `W` instead, so it must not mix outputs of two groups.
        """
        return f(self.product(x), p)

    def plus(self, x: Any, U: Update) -> Array:
        """`(W + U) x`, computed in the way that is cheapest for this kind."""
        v = self.vector(x)
        update = U.matrix().astype(v.dtype) @ v if U.times is None else U.times(v)
        return self.product(x) + update

    def finish(self, y: Array, b: Bias | None) -> Array:
        """`finish(product(x), bias_of(base)) == base(x)`: adds `b`, in the shape of the output."""
        return y if b is None else y + b

    @classmethod
    def bias_of(cls, layer: Any) -> Bias | None:
        """`b`: the number that the layer adds to each row of `W x`; `None` without a bias."""
        bias = getattr(layer, "bias", None)
        return jnp.asarray(bias).reshape(-1) if is_float_array(bias) else None

    @classmethod
    def replace_bias(cls, base: Any, bias: Bias) -> eqx.Module:
        """`bias_of(replace_bias(base, b)) == b`, for a layer that has a bias."""
        new = cast_like(bias, base.bias).reshape(base.bias.shape)
        return eqx.tree_at(lambda m: m.bias, base, new)

    @classmethod
    def modulated(cls, layer: eqx.Module, scale: Bias, shift: Bias | None) -> eqx.Module:
        """The plain `layer` with the outputs `scale y + shift`. `None` for a layer without bias."""
        new = cls.with_matrix(layer, scaled(cls.matrix(layer), scale))
        if shift is None:
            return new
        b = jnp.asarray(cls.bias_of(layer)).astype(shift.dtype)
        return cls.replace_bias(new, scaled(b, scale) + shift)

    def output_axis(self, *args: object) -> int | None:
        """The axis of the outputs in `self(*args)`. `None` if it computes more than `W x + b`."""
        return 0 if len(args) == 1 and self.computes(args[0]) else None


class MatrixLayer(LayerKind):
    """A kind of layer that stores its matrix (`weight_axes = "oi"`) or the transpose (`"io"`)."""

    # The field with the array.
    weight_field: ClassVar[str] = "weight"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if {"weight_axes", "weight_field"} & vars(cls).keys() and "matrix" not in vars(cls):
            # Adapters with the same `matrix` function use the same matrix, so their updates can be
            # added.
            function: Any = vars(MatrixLayer)["matrix"].__func__
            cls.matrix = classmethod(lambda cls, layer: function(cls, layer))  # pyright: ignore

    @classmethod
    def stack_ndim(cls, leaf: object) -> int:
        return getattr(leaf, cls.weight_field).ndim - 2

    @classmethod
    def matrix(cls, layer: object) -> Matrix:
        weight = in_compute_dtype(getattr(layer, cls.weight_field))
        return weight.T if cls.weight_axes == "io" else weight

    @classmethod
    def with_matrix(cls, base: eqx.Module, matrix: Matrix) -> eqx.Module:
        array = matrix.T if cls.weight_axes == "io" else matrix
        new = in_form_of(array, getattr(base, cls.weight_field))
        return eqx.tree_at(lambda m: getattr(m, cls.weight_field), base, new)

    @classmethod
    def mesh_axes(cls, base: object) -> MeshAxes:
        *stack, first, second = sharded_over(getattr(base, cls.weight_field))
        outputs, inputs = (second, first) if cls.weight_axes == "io" else (first, second)
        return MeshAxes(tuple(stack), outputs, inputs)

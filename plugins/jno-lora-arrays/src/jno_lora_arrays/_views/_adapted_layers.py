"""Adapted layers whose weight is known as a matrix, and the products of their adapters."""

import dataclasses
import functools
import math
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jno.lora.extending import is_coded, over_stack
from jno_lora_zoo import (
    LAYER_KINDS,
    EmbeddingLayer,
    LayerKind,
    LinearLayer,
    Method,
    linear_layer,
    with_attributes,
)

from .._box import INPUTS, ArrayLayer, DeclaredArray
from ._view import DeclinedError

# The kinds of layer that store their matrix, or its transpose, in one array.
_KINDS = (ArrayLayer, *(kind for kind in LAYER_KINDS if kind.weight_axes in ("oi", "io")))


def is_known(adapter: object) -> TypeGuard[Method]:
    """Whether the weight is laid out and merged as the kind of layer and the method define it.

    A subclass may override either.
    """
    kind = next((kind for kind in _KINDS if isinstance(adapter, kind)), None)
    if kind is None or not isinstance(adapter, Method):
        return False
    cls: Any = type(adapter)
    return (cls.matrix.__func__, cls.with_matrix.__func__, cls.merge) == (
        kind.matrix.__func__,  # pyright: ignore[reportFunctionMemberAccess]
        kind.with_matrix.__func__,  # pyright: ignore[reportFunctionMemberAccess]
        Method.merge,
    )


def weight_of(layer: Any) -> Array:
    """The bare weight of a layer, as a model reads it; for a complex array, the two parts."""
    weight = layer.in_order() if type(layer) is DeclaredArray else layer.weight
    return weight.decoded() if is_coded(weight) else weight


def kinds_of(adapter: Method) -> str:
    """The kind of each axis of the bare weight of an adapter's base: `s`, `o` or `i`."""
    base = adapter.base
    if type(base) is DeclaredArray:
        return base.axes.replace("e", "i")
    return "s" * (len(base.weight.shape) - 2) + str(adapter.kind.weight_axes)


def matrix_of(adapter: Method, layer: Any) -> Array:
    """The `(out, in)` matrix of the base, or of the merged layer; for a stack, one per layer."""
    if type(layer) is DeclaredArray:
        return layer.matrix()
    weight = weight_of(layer)
    return weight.mT if adapter.kind.weight_axes == "io" else weight


def matrix_shape(adapter: Method) -> tuple[int, ...]:
    """The shape of the matrix of an adapter's base, with the axes of a stack."""
    base = adapter.base
    if type(base) is DeclaredArray:
        return (*base.array.shape[: ArrayLayer.stack_ndim(base)], *base.linear_features())
    *stack, first, second = base.weight.shape
    return (*stack, second, first) if adapter.kind.weight_axes == "io" else (*stack, first, second)


def factors_of(adapter: Method) -> tuple[Array, Array] | None:
    """`A` `(r, in)` and `B` `(out, r)`, scale included, if `W' = W + B A` for the base's `W`.

    Both have the axes of a stack in front.
    """
    return over_stack(_factors, len(matrix_shape(adapter)) - 2)(adapter)


def _factors(adapter: Method) -> tuple[Array, Array] | None:
    form = adapter.form_of_law()
    return None if form is None or form.gain is not None else (form.A, form.B)


def times_inputs(adapter: Method, x: Array) -> Array:
    """`W' x` for vectors `(n, in)`, in their dtype."""
    return jax.vmap(_as_linear(adapter, x.dtype).forward)(x)


def times_outputs(adapter: Method, y: Array) -> Array:
    """`W'ᵀ y` for vectors `(n, out)`, as `times_inputs`."""
    linear = _as_linear(adapter, y.dtype)
    x = jax.ShapeDtypeStruct(matrix_shape(adapter)[-1:], y.dtype)
    dtype = jax.eval_shape(linear.forward, x).dtype
    transposed = jax.linear_transpose(linear.forward, x)
    return jax.vmap(lambda row: transposed(row)[0])(y.astype(dtype))


def columns(adapter: Method, index: Array) -> Array:
    """The columns of `W'` at a vector of indices, `(n, out)`."""
    base = eqx.nn.Embedding(weight=matrix_of(adapter, adapter.base).T)
    return jax.vmap(_as_kind(adapter, EmbeddingLayer, base).forward)(index)


def _as_linear(adapter: Method, dtype: DTypeLike) -> Method:
    weight = matrix_of(adapter, adapter.base).astype(dtype)
    return _as_kind(adapter, LinearLayer, linear_layer(weight))


def _as_kind(adapter: Method, kind: type[LayerKind], base: eqx.Module) -> Method:
    """The adapter of one layer around a layer of another kind, with the same matrix."""
    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
    layer = adapter.base
    if type(layer) is DeclaredArray:
        looked_up, inputs_first = math.prod(layer.sizes("e")), layer.own_axes[0] in INPUTS
    else:
        looked_up, inputs_first = None, adapter.kind.weight_axes == "io"
    cls = _class_of(type(adapter), kind, looked_up, inputs_first)
    converted: Method = with_attributes(object.__new__(cls), {**fields, "base": base})
    if not converted.has_fast_path():
        raise DeclinedError(f"{type(adapter).__name__} has no fast path here")
    return converted


@functools.lru_cache(maxsize=256)
def _class_of(cls: type[Method], kind: type, looked_up: int | None, inputs_first: bool) -> type:
    """The method of `cls` on another kind of layer.

    Its random factors keep their variance. If the weight is stored with its inputs first, the norms
    of rows are computed as norms of columns, so that the matrix is not copied.
    """

    def row_products(cls: type[LayerKind], layer: Any, A: Array) -> tuple[Array, Array]:
        stored = cls.matrix(layer).T
        return (A.astype(stored.dtype) @ stored).T, jnp.sum(stored * stored, axis=0)

    def fan_in(_: type[LayerKind], W: Array) -> int:
        return cls.fan_in(W) if looked_up is None else W.shape[1] // looked_up

    body = {"fan_in": classmethod(fan_in), "__module__": __name__}
    if inputs_first:
        body["row_products"] = classmethod(row_products)
    return type(cls.method.__name__, (cls.method, kind), body)

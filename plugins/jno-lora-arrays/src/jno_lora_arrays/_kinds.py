"""The layers whose weights are known as matrices, and the products of their adapters."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jno.lora import LoRAWrapper
from jno.lora.coded import is_coded
from jno.lora.extending import over_stack
from jno_lora_zoo import EmbeddingLayer, LayerKind, LinearLayer, Method, MiLoRA, PiSSA

from .layer import INPUTS, ArrayLayer, DeclaredArray

_KINDS: tuple[type[LayerKind], ...] = (LinearLayer, EmbeddingLayer, ArrayLayer)


def is_known(adapter: Any) -> bool:
    """Whether the weight is laid out, and merged, as the kind of layer and the method say.

    A subclass may do either in another way.
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
    """The bare weight of a layer, as a model reads it."""
    weight = layer.plain() if type(layer) is DeclaredArray else layer.weight
    return weight.decoded() if is_coded(weight) else weight


def axes_of(adapter: Any) -> list[tuple[str, int]]:
    """For each axis of the bare weight, its letter (`s`, `o` or `i`) and its size."""
    base = adapter.base
    if type(base) is DeclaredArray:
        letters = base.axes.translate(str.maketrans(INPUTS, "i" * len(INPUTS)))
        first = base.array.ndim - len(base.own_axes)
        stack, own = iter(base.array.shape[:first]), iter(base.array.shape[first:])
        return [(letter, next(stack if letter == "s" else own)) for letter in letters]
    letters = "oi" if isinstance(adapter, LinearLayer) else "io"
    shape = base.weight.shape
    return list(zip("s" * (len(shape) - 2) + letters, shape, strict=True))


def matrix_of(layer: Any) -> Array:
    """The `(out, in)` matrix of a layer in its own dtype; of a stack, for each layer in it."""
    if type(layer) is DeclaredArray:
        return layer.matrix()
    weight = weight_of(layer)
    return weight.mT if hasattr(layer, "num_embeddings") else weight


def matrix_shape(adapter: Any) -> tuple[int, ...]:
    """The shape of `matrix_of`, of an adapter's base."""
    base = adapter.base
    if type(base) is DeclaredArray:
        stack = base.array.shape[: base.array.ndim - len(base.own_axes)]
        return (*stack, *base.linear_features())
    *stack, first, second = base.weight.shape
    sizes = (first, second) if isinstance(adapter, LinearLayer) else (second, first)
    return (*stack, *sizes)


class Factors(NamedTuple):
    """`A` `(r, in)` and `B` `(out, r)` of an update `B A`, its scale included."""

    A: Array
    B: Array


def factors_of(adapter: Any) -> Factors | None:
    """The factors of `W' = W + B A` for the base's `W`, if the law is that. Stacked too."""
    return over_stack(_factors, len(matrix_shape(adapter)) - 2)(adapter)


def _factors(adapter: Any) -> Factors | None:
    if isinstance(adapter, PiSSA | MiLoRA):
        # `low_rank_update` counts from the original weight, and the base holds the residual.
        return Factors(adapter.lora_A, adapter.scaling * adapter.lora_B)
    if type(adapter).unwrap is not LoRAWrapper.unwrap:
        return None
    update = adapter.low_rank_update()
    return None if update is None else Factors(*update)


def times_inputs(adapter: Any, x: Array) -> Array | None:
    """`W' x` for vectors `(n, in)`, in their dtype; `None` if the adapter has no fast path."""
    linear = _as_linear(adapter, x.dtype)
    if not linear.has_fast_path():
        return None
    return jax.vmap(linear.forward)(x)


def times_outputs(adapter: Any, y: Array) -> Array | None:
    """`W'ᵀ y` for vectors `(n, out)`, as `times_inputs`."""
    linear = _as_linear(adapter, y.dtype)
    if not linear.has_fast_path():
        return None
    x = jax.ShapeDtypeStruct((linear.base.in_features,), y.dtype)
    dtype = jax.eval_shape(linear.forward, x).dtype
    transposed = jax.linear_transpose(linear.forward, x)
    return jax.vmap(lambda row: transposed(row)[0])(y.astype(dtype))


def columns(adapter: Any, index: Array) -> Array | None:
    """The columns of `W'` at a vector of indices, `(n, out)`."""
    table = matrix_of(adapter.base).T
    base = _without_init(
        eqx.nn.Embedding, weight=table, num_embeddings=table.shape[0], embedding_size=table.shape[1]
    )
    lookup = _as_kind(adapter, EmbeddingLayer, base)
    return jax.vmap(lookup.forward)(index) if lookup.has_fast_path() else None


def _as_linear(adapter: Any, dtype: Any) -> Any:
    """The adapter around a linear layer with the same matrix, in a dtype, without a bias."""
    matrix = matrix_of(adapter.base).astype(dtype)
    outputs, inputs = matrix.shape
    sizes = {"in_features": inputs, "out_features": outputs}
    base = _without_init(eqx.nn.Linear, weight=matrix, bias=None, use_bias=False, **sizes)
    return _as_kind(adapter, LinearLayer, base)


def _as_kind(adapter: Any, kind: type[LayerKind], base: Any) -> Any:
    fields = {f.name: getattr(adapter, f.name) for f in dataclasses.fields(adapter)}
    own = adapter.base  # one layer of a stack
    if type(own) is DeclaredArray:
        looked_up, has_inputs_first = math.prod(own.sizes("e")), own.own_axes[0] in INPUTS
    else:
        looked_up, has_inputs_first = None, isinstance(adapter, EmbeddingLayer)
    cls = _class_of(type(adapter), kind, looked_up, has_inputs_first)
    return _without_init(cls, **{**fields, "base": base})


@functools.lru_cache(maxsize=256)
def _class_of(cls: type[Method], kind: type, looked_up: int | None, has_inputs_first: bool) -> type:
    """The method of `cls` on another kind of layer.

    Its random factors keep their variance, and the norms of rows are those of columns where the
    weight is stored so: the whole matrix would be copied to change its layout.
    """
    method: Any = next(
        c
        for c in cls.__mro__
        if issubclass(c, Method) and getattr(c.fits, "__isabstractmethod__", False)
    )

    def row_products(cls: type[LayerKind], layer: Any, A: Array) -> tuple[Array, Array]:
        stored = cls.matrix(layer).T
        return (A.astype(stored.dtype) @ stored).T, jnp.sum(stored * stored, axis=0)

    def fan_in(_: type[LayerKind], W: Array) -> int:
        return cls.fan_in(W) if looked_up is None else W.shape[1] // looked_up

    body = {"fan_in": classmethod(fan_in), "__module__": __name__}
    if has_inputs_first:
        body["row_products"] = classmethod(row_products)
    return type(method.__name__, (method, kind), body)


def _without_init(cls: type, **fields: Any) -> Any:
    """An instance of an Equinox module with these fields."""
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module

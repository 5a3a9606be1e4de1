"""A product that keeps codes for the backward pass, and decodes them again there.

A primitive that is linear in `x`, given the codes. Its derivatives are such products too, of any
order and in every mode. (A function with a derivative rule of its own would fail in the second
derivatives of losses that contain derivatives.)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

# A hashable function of `x` and the leaves of a coded array, linear in `x`. Equal ones share
# compiled programs.
Map = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Applied:
    """`function(W, x)` for the array `W` that the leaves stand for."""

    function: Callable[[Array, Array], Array]
    structure: Any

    def __call__(self, x: Array, *leaves: Array) -> Array:
        return self.function(jax.tree.unflatten(self.structure, leaves).decoded(), x)


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The transpose of `of`, which takes an `x` of this type."""

    of: Map
    x: Any

    def __call__(self, y: Array, *leaves: Array) -> Array:
        return jax.linear_transpose(lambda x: self.of(x, *leaves), self.x)(y)[0]


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """`of`, mapped over these axes of `x` and of the leaves."""

    of: Map
    axes: tuple[int | None, ...]

    def __call__(self, x: Array, *leaves: Array) -> Array:
        return jax.vmap(self.of, self.axes)(x, *leaves)


linear_p = Primitive("jno_lora_linear")


def linear(function: Map, x: Array, *leaves: Array) -> Array:
    """`function(x, *leaves)`, whose backward pass keeps only the leaves."""
    return linear_p.bind(x, *leaves, function=function)


@functools.lru_cache(maxsize=4096)
def _compiled(function: Map) -> Map:
    return jax.jit(function)


@linear_p.def_impl
def _run(*args: Array, function: Map) -> Array:
    return _compiled(function)(*args)


@linear_p.def_abstract_eval
def _abstract(*args: Any, function: Map) -> ShapedArray:
    # Traced with the arguments' own types, which say how they lie on a mesh.
    return jax.make_jaxpr(function)(*args).out_avals[0]


def _differentiate(primals: Any, tangents: Any, *, function: Map) -> tuple[Array, Any]:
    # The leaves are codes, integers without tangents: `x` has one if this is called.
    (x, *leaves), dx = primals, tangents[0]
    return linear(function, x, *leaves), linear(function, dx, *leaves)


def _transpose(y: Any, x: Any, *leaves: Any, function: Map) -> tuple[Any, ...]:
    back = linear(_Transposed(function, x.aval), y, *leaves)
    return back, *(None for _ in leaves)


def _batch(args: Any, axes: Any, *, function: Map) -> tuple[Array, int]:
    return linear(_Mapped(function, tuple(axes)), *args), 0


def _expand(primals: Any, series: Any, *, function: Map) -> tuple[Array, list[Array]]:
    """The rule of Taylor mode: each coefficient of `x` alone."""
    x, *leaves = primals
    return linear(function, x, *leaves), [linear(function, term, *leaves) for term in series[0]]


def _after_x(x: Array, *leaves: Array, function: Map) -> Array:
    """The product, whose codes are decoded no sooner than `x` is known.

    XLA for CPUs would decode the weights of all layers first, or keep those of the forward pass for
    the backward pass, and so hold the whole model. It removes barriers, but not arithmetic: the
    zero below is one for every `x`, and the compiler does not know.
    """
    if x.size == 0:
        return function(x, *leaves)
    # Of all entries: one alone could not be read where the axes of a mesh are explicit.
    some = jnp.max(jnp.real(x)).astype(jnp.float32)
    never = (some != some) & (some == jnp.float32(jnp.inf))
    return function(x, *(leaf ^ never.astype(leaf.dtype) for leaf in leaves))


ad.primitive_jvps[linear_p] = _differentiate
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
jet.jet_rules[linear_p] = _expand
mlir.register_lowering(
    linear_p, mlir.lower_fun(lambda *args, function: function(*args), multiple_results=False)
)
mlir.register_lowering(linear_p, mlir.lower_fun(_after_x, multiple_results=False), platform="cpu")

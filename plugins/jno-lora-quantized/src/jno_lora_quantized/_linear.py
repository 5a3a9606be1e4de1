"""A product that saves codes for the backward pass, which decodes them again.

The product is a primitive that is linear in `x`, given the codes, so its derivatives of any order
are such products too. (A function with a custom derivative rule would fail in second derivatives.)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

# A hashable function of `x` and a coded array's leaves that is linear in `x`. Equal functions share
# compiled programs.
Map = Callable[..., Array]
Arrays = Sequence[Array]


@dataclasses.dataclass(frozen=True)
class Applied:
    """`function(W, x)` for the array `W` that the leaves encode."""

    function: Callable[[Array, Array], Array]
    structure: Any

    def __call__(self, x: Array, *leaves: Array) -> Array:
        return self.function(jax.tree.unflatten(self.structure, leaves).decoded(), x)


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The transpose of a function of `x`, whose type is `x_type`."""

    function: Map
    x_type: ShapedArray

    def __call__(self, y: Array, *leaves: Array) -> Array:
        return jax.linear_transpose(lambda x: self.function(x, *leaves), self.x_type)(y)[0]


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A function, mapped over these axes of `x` and of the leaves."""

    function: Map
    axes: tuple[int | None, ...]

    def __call__(self, x: Array, *leaves: Array) -> Array:
        return jax.vmap(self.function, self.axes)(x, *leaves)


linear_p = Primitive("jno_lora_linear")


def linear(function: Map, x: Array, *leaves: Array) -> Array:
    """`function(x, *leaves)`, with a backward pass that saves only the leaves."""
    return linear_p.bind(x, *leaves, function=function)


_compiled = functools.lru_cache(maxsize=4096)(jax.jit)
linear_p.def_impl(lambda *args, function: _compiled(function)(*args))


@linear_p.def_abstract_eval
def _abstract(*args: ShapedArray, function: Map) -> ShapedArray:
    # Traced with the types of the arguments, which include their sharding.
    return jax.make_jaxpr(function)(*args).out_avals[0]


def _differentiate(primals: Arrays, tangents: PyTree, *, function: Map) -> tuple[Array, Array]:
    # Only `x` has a tangent, because the leaves are integer codes.
    (x, *leaves), dx = primals, tangents[0]
    return linear(function, x, *leaves), linear(function, dx, *leaves)


def _transpose(
    y: Array, x: ad.UndefinedPrimal, *leaves: Array, function: Map
) -> tuple[Array | None, ...]:
    back = linear(_Transposed(function, x.aval), y, *leaves)
    return back, *(None for _ in leaves)


def _batch(args: Arrays, axes: Sequence[int | None], *, function: Map) -> tuple[Array, int]:
    return linear(_Mapped(function, tuple(axes)), *args), 0


def _expand(primals: Arrays, series: PyTree, *, function: Map) -> tuple[Array, list[Array]]:
    """The rule of Taylor mode, which maps each coefficient of `x` separately."""
    x, *leaves = primals
    return linear(function, x, *leaves), [linear(function, term, *leaves) for term in series[0]]


def _after_x(x: Array, *leaves: Array, function: Map) -> Array:
    """The product, computed so that the codes are decoded only once `x` is computed.

    XLA for CPUs would decode the weights of all layers first, or keep the decoded weights of the
    forward pass for the backward pass; either way the whole decoded model would be in memory. XLA
    removes barriers, but not arithmetic, so the codes change by a number that is always zero, which
    the compiler cannot prove.
    """
    if x.size == 0:
        return function(x, *leaves)
    # Of all entries, because a single entry cannot be read on a mesh with explicit axes.
    largest = jnp.max(jnp.real(x)).astype(jnp.float32)
    never = (largest != largest) & (largest == jnp.float32(jnp.inf))
    return function(x, *(leaf ^ never.astype(leaf.dtype) for leaf in leaves))


ad.primitive_jvps[linear_p] = _differentiate
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
jet.jet_rules[linear_p] = _expand
mlir.register_lowering(
    linear_p, mlir.lower_fun(lambda *args, function: function(*args), multiple_results=False)
)
mlir.register_lowering(linear_p, mlir.lower_fun(_after_x, multiple_results=False), platform="cpu")

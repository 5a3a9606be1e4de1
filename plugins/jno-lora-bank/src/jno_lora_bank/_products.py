"""The low-rank update of one of many slots for each example, as an operation on the whole batch.

`vmap` of `B[slot] @ (A[slot] @ x)` gathers two factors for each example, and then multiplies
example by example. The primitives here are batched as a whole instead, so that the examples of
each slot are computed together. The update and the sums are linear in each array, and they are
each other's derivatives, so all transformations of JAX apply to them. Two more primitives compute
the derivatives of an update by both factors, so that CPUs train with one loop per layer.

Shapes: `x` is `(b, n, k)` and `y` is `(b, n, m)`, `n` rows for each of `b` examples; `s` and
`slots` are `(b,)`. The factors of all slots are `A` `(count, r, k)` and `Bt` `(count, r, m)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

from ._kernels import (
    gathered_sums,
    gathered_update,
    looped_cotangents,
    looped_sums,
    looped_update,
    ragged_update,
)

Kernel: TypeAlias = Callable[..., Array | list[Array]]
# The batched axis of each argument, if any.
Axes: TypeAlias = Sequence[int | None]


def slot_update(
    y: Float[Array, " m"],
    x: Float[Array, " k"],
    A: Float[Array, "slots r k"],
    Bt: Float[Array, "slots r m"],
    s: Float[Array, ""],
    slot: Int[Array, ""],
) -> Float[Array, " m"]:
    """`y + s B[slot] A[slot] x`, and `y` itself for `s = 0`, whatever is in `x`.

    `Bt` contains the transposes of `B`, in the dtype of `A`. `y`, `x` and `s` have one dtype. The
    slot must exist.
    """
    return _update.bind(y[None, None], x[None, None], A, Bt, s[None], slot[None])[0, 0]


def _primitive(
    name: str,
    result_type: Callable[..., ShapedArray | list[ShapedArray]],
    statics: Sequence[str] = (),
) -> Primitive:
    primitive = Primitive(name)
    # If jit were disabled, the primitive would call itself forever.
    primitive.def_impl(jax.disable_jit(False)(jax.jit(primitive.bind, static_argnames=statics)))
    primitive.def_abstract_eval(result_type)
    return primitive


def _lower(primitive: Primitive, platform: str | None, kernel: Kernel) -> None:
    lowering = mlir.lower_fun(kernel, multiple_results=primitive.multiple_results)
    mlir.register_lowering(primitive, lowering, platform=platform)


_update = _primitive("jno_lora_slot_update", lambda y, *_: ShapedArray(y.shape, y.dtype))
_sums = _primitive(
    "jno_lora_slot_sums", lambda x, A, y, *_: ShapedArray((*A.shape[:2], y.shape[2]), A.dtype)
)

# A loop of small products is fast on a CPU, but slow on an accelerator.
_lower(_update, None, gathered_update)
_lower(_sums, None, gathered_sums)
_lower(_update, "cpu", looped_update)
_lower(_sums, "cpu", looped_sums)
_lower(_update, "tpu", ragged_update)


def _jet_rule(
    function: Callable[..., Any], primals: Sequence[Any], series: Sequence[Any], **params: bool
) -> Any:
    """The `jet` rule of a primitive, obtained by running `jet` on `function`.

    Rules get Taylor coefficients, but callers of `jet` pass derivatives.
    """
    *arrays, slots = primals
    of_arrays = lambda *xs: function(*xs, slots, **params)  # noqa: E731
    return jet.jet(of_arrays, arrays, series[:-1], factorial_scaled=False)


jet.jet_rules[_update] = functools.partial(_jet_rule, gathered_update)
jet.jet_rules[_sums] = functools.partial(_jet_rule, gathered_sums)


def _product(x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """The update, added to zeros."""
    return _update.bind(jnp.zeros((*x.shape[:2], Bt.shape[2]), x.dtype), x, A, Bt, s, slots)


ad.defjvp(
    _update,
    lambda dy, *_: dy,
    lambda dx, y, x, A, Bt, s, slots: _product(dx, A, Bt, s, slots),
    lambda dA, y, x, A, Bt, s, slots: _product(x, dA, Bt, s, slots),
    lambda dBt, y, x, A, Bt, s, slots: _product(x, A, dBt, s, slots),
    lambda ds, y, x, A, Bt, s, slots: _product(x, A, Bt, ds, slots),
    None,
)
ad.defjvp(
    _sums,
    lambda dx, x, A, y, s, slots: _sums.bind(dx, A, y, s, slots),
    lambda dA, x, A, y, s, slots: _sums.bind(x, dA, y, s, slots),
    lambda dy, x, A, y, s, slots: _sums.bind(x, A, dy, s, slots),
    lambda ds, x, A, y, s, slots: _sums.bind(x, A, y, ds, slots),
    None,
)


def _by_scale(y: Array, x: Array, A: Array, Bt: Array, slots: Array) -> Array:
    ones = jnp.ones(len(x), x.dtype)
    return jnp.sum(y * _product(x, A, Bt, ones, slots), (1, 2))


def _transpose_rule(transposes: Sequence[Callable[..., Array]], ct: Any, *args: Any) -> list[Any]:
    """A transpose rule, made of the transposes by each array except `slots`."""
    results: list[Any] = [None] * len(args)
    for i, x in enumerate(args):
        if ad.is_undefined_primal(x):
            is_zero = type(ct) is ad.Zero
            results[i] = ad.Zero(x.aval) if is_zero else transposes[i](ct, *args)
    return results


_UPDATE_TRANSPOSES = (
    lambda ct, *_: ct,
    lambda ct, y, x, A, Bt, s, slots: _product(ct, Bt, A, s, slots),
    lambda ct, y, x, A, Bt, s, slots: _sums.bind(ct, Bt, x, s, slots),
    lambda ct, y, x, A, Bt, s, slots: _sums.bind(x, A, ct, s, slots),
    lambda ct, y, x, A, Bt, s, slots: _by_scale(ct, x, A, Bt, slots),
)
_SUMS_TRANSPOSES = (
    lambda ct, x, A, y, s, slots: _product(y, ct, A, s, slots),
    lambda ct, x, A, y, s, slots: _sums.bind(y, ct, x, s, slots),
    lambda ct, x, A, y, s, slots: _product(x, A, ct, s, slots),
    lambda ct, x, A, y, s, slots: _by_scale(y, x, A, ct, slots),
)
ad.primitive_transposes[_update] = functools.partial(_transpose_rule, _UPDATE_TRANSPOSES)
ad.primitive_transposes[_sums] = functools.partial(_transpose_rule, _SUMS_TRANSPOSES)


def _batch_update(args: Sequence[Any], dims: Axes) -> tuple[Array, int]:
    """The new axis lengthens `n` or `b`."""
    v = _batch_size(args, dims)
    y, x, A, Bt, s, slots = args
    y, x = _in_front(y, dims[0], v), _in_front(x, dims[1], v)
    if set(dims[2:]) == {None}:  # more rows of the same examples
        y, x = jnp.moveaxis(y, 0, 1), jnp.moveaxis(x, 0, 1)
        rows = (a.reshape(len(a), v * a.shape[2], a.shape[3]) for a in (y, x))
        return _update.bind(*rows, A, Bt, s, slots).reshape(y.shape), 1
    s, slots = _in_front(s, dims[4], v), _in_front(slots, dims[5], v)
    if dims[2:4] != (None, None):
        A, Bt = _in_front(A, dims[2], v), _in_front(Bt, dims[3], v)
        slots = _numbered(slots, A.shape[1])
        A, Bt = _joined(A), _joined(Bt)
    result = _update.bind(_joined(y), _joined(x), A, Bt, _joined(s), _joined(slots))
    return result.reshape(y.shape), 0


def _batch_sums(args: Sequence[Any], dims: Axes) -> tuple[Array, int]:
    v = _batch_size(args, dims)
    x, A, y, s, slots = (_in_front(a, d, v) for a, d in zip(args, dims, strict=True))
    slots = _numbered(slots, A.shape[1])
    sums = _sums.bind(*map(_joined, (x, A, y, s, slots)))
    return sums.reshape(v, len(sums) // v, *sums.shape[1:]), 0


def _batch_size(args: Sequence[Any], dims: Axes) -> int:
    return next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)


def _in_front(array: Array, dim: int | None, size: int) -> Array:
    """`array` with its batched axis in front, or copies of it there."""
    if dim is not None:
        return jnp.moveaxis(array, dim, 0)
    return jnp.broadcast_to(array, (size, *array.shape))


def _joined(array: Array) -> Array:
    """`array` with its first two axes joined."""
    return lax.collapse(array, 0, 2)


def _numbered(slots: Int[Array, "v b"], count: int) -> Int[Array, "v b"]:
    """The numbers of `slots` after `v` stacks of `count` slots have been concatenated."""
    return slots + count * jnp.arange(len(slots), dtype=slots.dtype)[:, None]


batching.primitive_batchers[_update] = _batch_update
batching.primitive_batchers[_sums] = _batch_sums


def _tangent_by_terms(*args: Array) -> Array:
    """The tangent of the update, for tangents of `A`, of `Bt`, and of `x` if there is one."""
    *dx, dA, dBt, x, A, Bt, s, slots = args
    y = jnp.zeros((*x.shape[:2], Bt.shape[2]), x.dtype)
    for term in (*((d, A, Bt) for d in dx), (x, dA, Bt), (x, A, dBt)):
        y = _update.bind(y, *term, s, slots)
    return y


def _cotangents_by_terms(
    ct: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array, *, of_x: bool
) -> list[Array]:
    """The transpose of `_tangent_by_terms`."""
    dx = [_product(ct, Bt, A, s, slots)] if of_x else []
    return [*dx, _sums.bind(ct, Bt, x, s, slots), _sums.bind(x, A, ct, s, slots)]


def _cotangent_types(*args: ShapedArray, of_x: bool) -> list[ShapedArray]:
    _, x, A, Bt, *_ = args
    return [ShapedArray(a.shape, a.dtype) for a in ([x] if of_x else []) + [A, Bt]]


def _tangent_type(*args: ShapedArray) -> ShapedArray:
    x, _, Bt = args[-5:-2]
    return ShapedArray((*x.shape[:2], Bt.shape[2]), x.dtype)


_tangent = _primitive("jno_lora_slot_tangent", _tangent_type)
_cotangents = _primitive("jno_lora_slot_cotangents", _cotangent_types, ("of_x",))
_cotangents.multiple_results = True
_lower(_tangent, None, _tangent_by_terms)
_lower(_cotangents, None, _cotangents_by_terms)
_lower(_cotangents, "cpu", looped_cotangents)


def _by_terms(primitive: Primitive, terms: Kernel) -> None:
    """Differentiate and batch `primitive` by differentiating and batching `terms`."""

    def of_places(primals: Sequence[Any], places: Sequence[int], params: dict[str, bool]) -> Kernel:
        def function(*values: Array) -> Array | list[Array]:
            new = dict(zip(places, values, strict=True))
            return terms(*(new.get(i, x) for i, x in enumerate(primals)), **params)

        return function

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: bool) -> Any:
        places = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
        function = of_places(primals, places, params)
        return jax.jvp(function, [primals[i] for i in places], [tangents[i] for i in places])

    def transpose(ct: Any, *args: Any, **params: bool) -> list[Any]:
        places = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
        types = [args[i].aval for i in places]
        ct = jax.tree.map(ad.instantiate_zeros, ct, is_leaf=lambda t: type(t) is ad.Zero)
        cts = jax.linear_transpose(of_places(args, places, params), *types)(ct)
        return [dict(zip(places, cts, strict=True)).get(i) for i in range(len(args))]

    def batch(args: Sequence[Any], dims: Any, **params: bool) -> Any:
        results = jax.vmap(functools.partial(terms, **params), dims)(*args)
        return results, [0] * len(results) if primitive.multiple_results else 0

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch


_by_terms(_tangent, _tangent_by_terms)
_by_terms(_cotangents, _cotangents_by_terms)
jet.jet_rules[_cotangents] = functools.partial(_jet_rule, _cotangents_by_terms)
jet.jet_rules[_tangent] = functools.partial(_jet_rule, _tangent_by_terms)
_transpose_tangent_by_terms = ad.primitive_transposes[_tangent]


def _transpose_tangent(ct: Any, *args: Any) -> list[Any]:
    *tangents, x, A, Bt, s, slots = args
    if (
        type(ct) is ad.Zero
        or [*map(ad.is_undefined_primal, args)] != [True] * len(tangents) + [False] * 5
    ):
        return _transpose_tangent_by_terms(ct, *args)
    cts = _cotangents.bind(ct, x, A, Bt, s, slots, of_x=len(tangents) == 3)
    return [*cts, *[None] * 5]


ad.primitive_transposes[_tangent] = _transpose_tangent
_jvp_by_terms = ad.primitive_jvps[_update]


def _jvp_of_update(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """The tangents of `x`, `A` and `Bt` together, if both factors have a tangent."""
    dy, dx, dA, dBt, ds, _ = tangents
    if ad.Zero in (type(dA), type(dBt)):
        return _jvp_by_terms(primals, tangents)
    _, x, A, Bt, s, slots = primals
    zeros = (ad.Zero(jax.typeof(a)) for a in primals[1:4])
    y, dy = _jvp_by_terms(primals, (dy, *zeros, ds, tangents[5]))
    dx = [] if type(dx) is ad.Zero else [dx]
    return y, ad.add_tangents(dy, _tangent.bind(*dx, dA, dBt, x, A, Bt, s, slots))


ad.primitive_jvps[_update] = _jvp_of_update

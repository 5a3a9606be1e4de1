"""The low-rank update of one of many slots for each example, as an operation on the whole batch.

`vmap` of `B[slot] @ (A[slot] @ x)` gathers two factors for each example, and then multiplies
example by example. The two primitives here are batched as a whole instead, so that the examples of
each slot are taken together. Both primitives are linear in each array, and each is the derivative
of the other, so that all transformations of JAX apply to them.

Shapes: `x` is `(b, n, k)` and `y` is `(b, n, m)`, `n` rows for each of `b` examples; `s` and
`slots` are `(b,)`. The factors of all slots are `A` `(count, r, k)` and `Bt` `(count, r, m)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

# The most rows that the loop of CPUs multiplies at a time.
_ROWS = 64


def slot_update(
    y: Float[Array, " m"],
    x: Float[Array, " k"],
    A: Float[Array, "slots r k"],
    Bt: Float[Array, "slots r m"],
    s: Float[Array, ""],
    slot: Int[Array, ""],
) -> Float[Array, " m"]:
    """`y + s B[slot] A[slot] x`, and `y` itself for `s = 0`, whatever `x` holds.

    `Bt` are the transposes of `B`, in the dtype of `A`. `y`, `x` and `s` have one dtype. The slot
    must exist.
    """
    return _update.bind(y[None, None], x[None, None], A, Bt, s[None], slot[None])[0, 0]


def gathered_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`y_b + s_b (x_b A^T) Bt` with a copy of the factors of `slots_b` for each example."""
    h = _gathered_down(x, A, s, slots)
    u = jnp.einsum("bnr,brm->bnm", h, Bt[slots].astype(x.dtype))
    return jnp.where((s == 0)[:, None, None], y, y + u)


def gathered_sums(x: Array, A: Array, y: Array, s: Array, slots: Array) -> Array:
    """The sum of `s_b (x_b A^T)^T y_b` over the examples of each slot: `(count, r, m)`."""
    products = jnp.einsum("bnr,bnm->brm", _gathered_down(x, A, s, slots), y)
    products = jnp.where((s == 0)[:, None, None], 0, products).astype(A.dtype)
    return jnp.zeros((len(A), *products.shape[1:]), A.dtype).at[slots].add(products)


def _gathered_down(x: Array, A: Array, s: Array, slots: Array) -> Array:
    return s[:, None, None] * jnp.einsum("bnk,brk->bnr", x, A[slots].astype(x.dtype))


def looped_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`gathered_update` without copies: a loop over blocks of examples with the same slot."""
    if len(x) < 2:
        return gathered_update(y, x, A, Bt, s, slots)

    def add(examples: Array, slot: Array, scale: Array, h: Array, y: Array) -> Array:
        u = (h @ _factor(Bt, slot, x.dtype)).reshape(len(examples), *y.shape[1:])
        return y.at[jnp.where(scale == 0, len(x), examples)].add(u, mode="drop")

    return _loop(add, _flat(y), x, A, s, slots).reshape(y.shape)


def looped_sums(x: Array, A: Array, y: Array, s: Array, slots: Array) -> Array:
    """`gathered_sums` by the same loop. Only the result is as large as all factors."""
    if len(x) < 2:
        return gathered_sums(x, A, y, s, slots)
    flat = _flat(y)

    def add(examples: Array, slot: Array, scale: Array, h: Array, sums: Array) -> Array:
        is_zero = jnp.repeat(scale == 0, x.shape[1])[:, None]
        # Zeros in both factors: NaN of an example of another slot, times zero, would be NaN.
        h = jnp.where(is_zero, 0, h)
        right = jnp.where(is_zero, 0, _rows(flat, examples, y.shape[2]))
        total = _factor(sums, slot, A.dtype) + (h.T @ right).astype(A.dtype)
        return lax.dynamic_update_index_in_dim(sums, total, slot, 0)

    return _loop(add, jnp.zeros((*A.shape[:2], y.shape[2]), A.dtype), x, A, s, slots)


def _loop(
    step: Callable[..., Array], result: Array, x: Array, A: Array, s: Array, slots: Array
) -> Array:
    """`result = step(examples, slot, s, s (x A^T), result)` for each block of one slot's examples.

    A block that is not full is padded with the number `b`, which no example has, and `s = 0`.
    """
    (b, n, width), count, flat = x.shape, len(A), _flat(x)
    # As many examples as a slot has on average. Larger blocks waste products on padding, and
    # smaller blocks need more iterations.
    size = max(1, min(_ROWS // n, -(-b // count)))
    order = jnp.argsort(slots, stable=True)
    slots = slots[order]
    # A block begins at the first example of a slot, and after every `size` examples of this slot.
    places = jnp.arange(b)
    begins = (places - jnp.searchsorted(slots, slots).astype(places.dtype)) % size == 0
    firsts = jnp.flatnonzero(begins, size=b)
    in_block = firsts[:, None] + jnp.arange(size)[None]
    slot_of_block = slots[firsts]
    is_of_slot = slots.at[in_block].get(mode="fill", fill_value=count) == slot_of_block[:, None]
    examples = jnp.where(is_of_slot, order.at[in_block].get(mode="clip"), b)

    def body(i: Array, result: Array) -> Array:
        scale = s.at[examples[i]].get(mode="fill", fill_value=0)
        h = _rows(flat, examples[i], width) @ _factor(A, slot_of_block[i], x.dtype).T
        h = jnp.repeat(scale, n)[:, None] * h
        return step(examples[i], slot_of_block[i], scale, h, result)

    return lax.fori_loop(0, begins.sum(), body, result)


def _flat(x: Array) -> Array:
    """`x` without an axis of one row: XLA would pick another layout for it, and copy."""
    return x[:, 0] if x.shape[1] == 1 else x


def _rows(flat: Array, examples: Array, width: int) -> Array:
    return flat.at[examples].get(mode="clip").reshape(-1, width)


def _factor(M: Array, slot: Array, dtype: Any) -> Array:
    return lax.dynamic_index_in_dim(M, slot, keepdims=False).astype(dtype)


def ragged_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`gathered_update` by products of sorted rows, an operation of TPUs."""
    order = jnp.argsort(slots, stable=True)
    sizes = jnp.bincount(slots, length=len(A)).astype(jnp.int32) * x.shape[1]
    h = lax.ragged_dot(x[order].reshape(-1, x.shape[2]), A.astype(x.dtype).mT, sizes)
    h = h * jnp.repeat(s[order], x.shape[1])[:, None]
    u = lax.ragged_dot(h, Bt.astype(x.dtype), sizes).reshape(y.shape)
    u = jnp.zeros_like(y).at[order].set(u, unique_indices=True)
    return jnp.where((s == 0)[:, None, None], y, y + u)


def _primitive(name: str, result_type: Callable[..., ShapedArray]) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(result_type)
    return primitive


def _lower(primitive: Primitive, platform: str | None, kernel: Callable[..., Array]) -> None:
    lowering = mlir.lower_fun(kernel, multiple_results=False)
    mlir.register_lowering(primitive, lowering, platform=platform)


_update = _primitive("jno_lora_slot_update", lambda y, *_: ShapedArray(y.shape, y.dtype))
_sums = _primitive(
    "jno_lora_slot_sums", lambda x, A, y, *_: ShapedArray((*A.shape[:2], y.shape[2]), A.dtype)
)

# The platform decides: a loop of small products suits a CPU, and keeps an accelerator waiting.
_lower(_update, None, gathered_update)
_lower(_sums, None, gathered_sums)
_lower(_update, "cpu", looped_update)
_lower(_sums, "cpu", looped_sums)
_lower(_update, "tpu", ragged_update)


def _jet_rule(function: Callable[..., Array], primals: Any, series: Any) -> Any:
    """The `jet` rule of a primitive, obtained by running `jet` on `function`."""
    *arrays, slots = primals
    return jet.jet(lambda *xs: function(*xs, slots), arrays, series[:-1])


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
    """A transpose rule, from the transpose by each array but `slots`."""
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


def _batch_update(args: Any, dims: Any) -> tuple[Array, int]:
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


def _batch_sums(args: Any, dims: Any) -> tuple[Array, int]:
    v = _batch_size(args, dims)
    x, A, y, s, slots = (_in_front(a, d, v) for a, d in zip(args, dims, strict=True))
    slots = _numbered(slots, A.shape[1])
    sums = _sums.bind(*map(_joined, (x, A, y, s, slots)))
    return sums.reshape(v, len(sums) // v, *sums.shape[1:]), 0


def _batch_size(args: Any, dims: Any) -> int:
    return next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)


def _in_front(array: Array, dim: int | None, size: int) -> Array:
    """`array` with its batched axis in front, or copies of it there."""
    if dim is not None:
        return jnp.moveaxis(array, dim, 0)
    return jnp.broadcast_to(array, (size, *array.shape))


def _joined(array: Array) -> Array:
    """`array` with its first two axes as one axis."""
    return lax.collapse(array, 0, 2)


def _numbered(slots: Int[Array, "v b"], count: int) -> Int[Array, "v b"]:
    """The numbers of `slots` once `v` stacks of `count` slots lie one after the other."""
    return slots + count * jnp.arange(len(slots), dtype=slots.dtype)[:, None]


batching.primitive_batchers[_update] = _batch_update
batching.primitive_batchers[_sums] = _batch_sums

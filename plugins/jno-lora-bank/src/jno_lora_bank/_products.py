"""The low-rank update of one of many slots for each example, as an operation on the whole batch.

`vmap` of `B[slot] @ (A[slot] @ x)` gathers two factors for each example, and then multiplies
example by example. The two primitives here are batched as a whole instead: a loop takes the
examples of each slot together. They are linear in each array, and each is the derivative of the
other, so that all transformations of JAX apply to them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

# The most rows that the loop multiplies at a time.
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

    `Bt` are the transposes of `B`. `y`, `x` and `s` have one dtype. The slot must exist.
    """
    return _update.bind(y[None, None], x[None, None], A, Bt, s[None], slot[None])[0, 0]


# The shapes below: `x` `(b, n, k)` and `y` `(b, n, m)`, `n` rows for each of `b` examples; `s` and
# `slots` `(b,)`; `A` `(slots, r, k)` and `Bt` `(slots, r, m)`.


def _gathered_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`y_b + s_b (x_b A^T) Bt` with a copy of the factors of `slots_b` for each example."""
    h = _gathered_down(x, A, s, slots)
    u = jnp.einsum("bnr,brm->bnm", h, Bt[slots].astype(x.dtype))
    return jnp.where((s == 0)[:, None, None], y, y + u)


def _gathered_down(x: Array, A: Array, s: Array, slots: Array) -> Array:
    return s[:, None, None] * jnp.einsum("bnk,brk->bnr", x, A[slots].astype(x.dtype))


def _gathered_sums(x: Array, A: Array, y: Array, s: Array, slots: Array, *, dtype: Any) -> Array:
    """The sum of `s_b (x_b A^T)^T y_b` over the examples of each slot: `(slots, r, m)`."""
    products = jnp.einsum("bnr,bnm->brm", _gathered_down(x, A, s, slots), y)
    products = jnp.where((s == 0)[:, None, None], 0, products).astype(dtype)
    return jnp.zeros((len(A), *products.shape[1:]), dtype).at[slots].add(products)


def _looped_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`_gathered_update`, one block of examples after the other, without copies."""
    if len(x) < 2:
        return _gathered_update(y, x, A, Bt, s, slots)
    flat = _flat(x)

    def write(own: Array, slot: Array, y: Array) -> Array:
        scale = s.at[own].get(mode="fill", fill_value=0)
        h = _rows(flat, own, x.shape[2]) @ _factor(A, slot, x.dtype).T
        h = jnp.repeat(scale, x.shape[1])[:, None] * h
        u = (h @ _factor(Bt, slot, x.dtype)).reshape(len(own), *y.shape[1:])
        return y.at[jnp.where(scale == 0, len(x), own)].add(u, mode="drop")

    return _loop(write, _flat(y), x, slots, len(A)).reshape(y.shape)


def _looped_sums(x: Array, A: Array, y: Array, s: Array, slots: Array, *, dtype: Any) -> Array:
    """`_gathered_sums`, by the same loop. Only the result is as large as all factors."""
    if len(x) < 2:
        return _gathered_sums(x, A, y, s, slots, dtype=dtype)
    lefts, rights = _flat(x), _flat(y)

    def write(own: Array, slot: Array, sums: Array) -> Array:
        scale = jnp.repeat(s.at[own].get(mode="fill", fill_value=0), x.shape[1])[:, None]
        h = scale * (_rows(lefts, own, x.shape[2]) @ _factor(A, slot, x.dtype).T)
        # Both, since the NaN of another slot's example times zero is NaN.
        h, right = (jnp.where(scale == 0, 0, a) for a in (h, _rows(rights, own, y.shape[2])))
        total = lax.dynamic_index_in_dim(sums, slot, keepdims=False) + (h.T @ right).astype(dtype)
        return lax.dynamic_update_index_in_dim(sums, total, slot, 0)

    return _loop(write, jnp.zeros((*A.shape[:2], y.shape[2]), dtype), x, slots, len(A))


def _loop(
    write: Callable[[Array, Array, Array], Array],
    start: Array,
    x: Array,
    slots: Array,
    count: int,
) -> Array:
    """`result = write(examples, slot, result)` for each block of examples of one slot.

    A block that is not full has examples `b`, which do not exist.
    """
    b, n = x.shape[:2]
    # As many as a slot has on average: a block that is not full wastes products, and each costs an
    # iteration.
    size = max(1, min(_ROWS // n, -(-b // count)))
    order = jnp.argsort(slots, stable=True)
    slots = slots[order]
    # A block begins at the first example of a slot, and after every `size` of them.
    places = jnp.arange(b)
    begins = (places - jnp.searchsorted(slots, slots).astype(places.dtype)) % size == 0
    firsts = jnp.flatnonzero(begins, size=b)
    at = firsts[:, None] + jnp.arange(size)[None]
    of_block = slots[firsts]
    is_own = slots.at[at].get(mode="fill", fill_value=count) == of_block[:, None]
    examples = jnp.where(is_own, order.at[at].get(mode="clip"), b)

    def body(i: Array, result: Array) -> Array:
        return write(examples[i], of_block[i], result)

    return lax.fori_loop(0, begins.sum(), body, start)


def _flat(x: Array) -> Array:
    """`x` without an axis of one row: XLA would pick another layout for it, and copy."""
    return x[:, 0] if x.shape[1] == 1 else x


def _rows(flat: Array, examples: Array, width: int) -> Array:
    return flat.at[examples].get(mode="clip").reshape(-1, width)


def _factor(M: Array, slot: Array, dtype: Any) -> Array:
    return lax.dynamic_index_in_dim(M, slot, keepdims=False).astype(dtype)


def _ragged_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`_gathered_update` by products of sorted rows, which TPUs have."""
    order = jnp.argsort(slots, stable=True)
    sizes = jnp.bincount(slots, length=len(A)).astype(jnp.int32) * x.shape[1]
    h = lax.ragged_dot(x[order].reshape(-1, x.shape[2]), A.astype(x.dtype).mT, sizes)
    h = h * jnp.repeat(s[order], x.shape[1])[:, None]
    u = lax.ragged_dot(h, Bt.astype(x.dtype), sizes).reshape(y.shape)
    u = jnp.zeros_like(y).at[order].set(u, unique_indices=True)
    return jnp.where((s == 0)[:, None, None], y, y + u)


def _primitive(name: str, shape_of: Callable[..., ShapedArray]) -> Primitive:
    made = Primitive(name)

    @functools.cache
    def compiled(**params: Any) -> Callable[..., Array]:
        return jax.jit(functools.partial(made.bind, **params))

    made.def_impl(lambda *args, **params: compiled(**params)(*args))
    made.def_abstract_eval(shape_of)
    return made


def _lowered(primitive: Primitive, platform: str | None, function: Callable[..., Array]) -> None:
    lowering = mlir.lower_fun(function, multiple_results=False)
    mlir.register_lowering(primitive, lowering, platform=platform)


_update = _primitive("jno_lora_slot_update", lambda y, *_: ShapedArray(y.shape, y.dtype))
_sums = _primitive(
    "jno_lora_slot_sums",
    lambda x, A, y, s, slots, dtype: ShapedArray((*A.shape[:2], y.shape[2]), np.dtype(dtype)),
)

# One rule by the platform: a loop of small products suits a CPU, and keeps an accelerator waiting.
_lowered(_update, None, _gathered_update)
_lowered(_sums, None, _gathered_sums)
_lowered(_update, "cpu", _looped_update)
_lowered(_sums, "cpu", _looped_sums)
_lowered(_update, "tpu", _ragged_update)


def _by_operations(function: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of `jet` for a primitive: that of the operations of `function`."""

    def rule(primals: Any, series: Any, **params: Any) -> Any:
        *arrays, slots = primals
        return jet.jet(lambda *own: function(*own, slots, **params), arrays, series[:-1])

    return rule


jet.jet_rules[_update] = _by_operations(_gathered_update)
jet.jet_rules[_sums] = _by_operations(_gathered_sums)


def _product(x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """The update of zeros."""
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
    lambda dx, x, A, y, s, slots, dtype: _sums.bind(dx, A, y, s, slots, dtype=dtype),
    lambda dA, x, A, y, s, slots, dtype: _sums.bind(x, dA, y, s, slots, dtype=dtype),
    lambda dy, x, A, y, s, slots, dtype: _sums.bind(x, A, dy, s, slots, dtype=dtype),
    lambda ds, x, A, y, s, slots, dtype: _sums.bind(x, A, y, ds, slots, dtype=dtype),
    None,
)


def _transposed(rule: Callable[..., tuple[Callable[[], Array], ...]]) -> Callable[..., Any]:
    """The rule that transposes a primitive, of one that gives a function for each array."""

    def transpose(ct: Any, *args: Any, **params: Any) -> list[Any]:
        is_linear = [ad.is_undefined_primal(arg) for arg in args]
        if type(ct) is ad.Zero:
            return [
                ad.Zero(x.aval) if own else None for x, own in zip(args, is_linear, strict=True)
            ]
        functions = (*rule(ct, *args, **params), None)
        return [
            f() if own and f is not None else None
            for f, own in zip(functions, is_linear, strict=True)
        ]

    return transpose


def _transposes_of_update(
    ct: Array, y: Any, x: Any, A: Any, Bt: Any, s: Any, slots: Any
) -> tuple[Callable[[], Array], ...]:
    return (
        lambda: ct,
        lambda: _product(ct, Bt, A, s, slots),
        lambda: _sums.bind(ct, Bt, x, s, slots, dtype=np.dtype(A.aval.dtype)),
        lambda: _sums.bind(x, A, ct, s, slots, dtype=np.dtype(Bt.aval.dtype)),
        lambda: jnp.sum(ct * _product(x, A, Bt, jnp.ones(len(ct), ct.dtype), slots), (1, 2)),
    )


def _transposes_of_sums(
    ct: Array, x: Any, A: Any, y: Any, s: Any, slots: Any, *, dtype: Any
) -> tuple[Callable[[], Array], ...]:
    return (
        lambda: _product(y, ct, A, s, slots),
        lambda: _sums.bind(y, ct, x, s, slots, dtype=np.dtype(A.aval.dtype)),
        lambda: _product(x, A, ct, s, slots),
        lambda: jnp.sum(y * _product(x, A, ct, jnp.ones(len(x), x.dtype), slots), (1, 2)),
    )


ad.primitive_transposes[_update] = _transposed(_transposes_of_update)
ad.primitive_transposes[_sums] = _transposed(_transposes_of_sums)


def _batch_update(args: Any, dims: Any) -> tuple[Array, int]:
    """The new axis lengthens `n` or `b`."""
    v = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    y, x, A, Bt, s, slots = args
    y, x = (_in_front(a, d, v) for a, d in zip((y, x), dims, strict=False))
    if set(dims[2:]) == {None}:  # more rows of the same examples
        y, x = (jnp.moveaxis(a, 0, 1) for a in (y, x))
        rows = (a.reshape(len(a), v * a.shape[2], a.shape[3]) for a in (y, x))
        return _update.bind(*rows, A, Bt, s, slots).reshape(y.shape), 1
    s, slots = _in_front(s, dims[4], v), _in_front(slots, dims[5], v)
    if dims[2:4] != (None, None):
        A, Bt, slots = _one_stack(v, slots, (A, dims[2]), (Bt, dims[3]))
    merged = [a.reshape(v * a.shape[1], *a.shape[2:]) for a in (y, x, s, slots)]
    return _update.bind(*merged[:2], A, Bt, *merged[2:]).reshape(y.shape), 0


def _batch_sums(args: Any, dims: Any, *, dtype: Any) -> tuple[Array, int]:
    v = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    x, _, y, s, slots = (_in_front(a, d, v) for a, d in zip(args, dims, strict=True))
    A, slots = _one_stack(v, slots, (args[1], dims[1]))
    x, y, s, slots = (a.reshape(v * a.shape[1], *a.shape[2:]) for a in (x, y, s, slots))
    sums = _sums.bind(x, A, y, s, slots, dtype=dtype)
    return sums.reshape(v, len(sums) // v, *sums.shape[1:]), 0


def _in_front(array: Array, dim: int | None, size: int) -> Array:
    """`array` with its batched axis in front, or copies of it there."""
    if dim is not None:
        return jnp.moveaxis(array, dim, 0)
    return jnp.broadcast_to(array, (size, *array.shape))


def _one_stack(v: int, slots: Int[Array, "v b"], *stacks: tuple[Array, int | None]) -> list[Array]:
    """Stacks that lie one after the other, and the slots in them."""
    whole = [_in_front(M, dim, v) for M, dim in stacks]
    count = whole[0].shape[1]
    slots = slots + count * jnp.arange(v, dtype=slots.dtype)[:, None]
    return [*(M.reshape(-1, *M.shape[2:]) for M in whole), slots]


batching.primitive_batchers[_update] = _batch_update
batching.primitive_batchers[_sums] = _batch_sums

"""Products with one of many matrices for each example, as operations that see the whole batch.

`vmap` of `x @ M[slot]` gathers a matrix for each example, and then multiplies example by example.
The two primitives here are batched as a whole instead: a loop over the slots that occur takes the
examples of each slot together. They are bilinear, and each is the derivative of the other, so that
all transformations of JAX apply to them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
_ROWS = 16


def slot_product(
    x: Float[Array, " k"], M: Float[Array, "slots k m"], slot: Int[Array, ""]
) -> Float[Array, " m"]:
    """`x M[slot]`, in the dtype of `x`. The slot must be one of the stack."""
    return _times.bind(x[None, None], M, slot[None], transposed=False)[0, 0]


def slot_low_rank(
    x: Float[Array, " k"],
    A: Float[Array, "slots r k"],
    Bt: Float[Array, "slots r m"],
    slot: Int[Array, ""],
) -> Float[Array, " m"]:
    """`B[slot] A[slot] x`, in the dtype of `x`, for `Bt`, the transposes of `B`."""
    h = _times.bind(x[None, None], A, slot[None], transposed=True)
    return _times.bind(h, Bt, slot[None], transposed=False)[0, 0]


# `x` is `(b, n, k)` below: `n` rows for each of `b` examples. `M` is `(slots, k, m)`, or
# `(slots, m, k)` and `transposed`. `slots` is `(b,)`.


def _gathered_times(x: Array, M: Array, slots: Array, *, transposed: bool) -> Array:
    """`x_b M[slots_b]`, with a copy of the matrix for each example."""
    own = M[slots].astype(x.dtype)
    return jnp.einsum("bnk,bmk->bnm" if transposed else "bnk,bkm->bnm", x, own)


def _gathered_outer(x: Array, y: Array, slots: Array, *, count: int, dtype: Any) -> Array:
    """The sum of `x_b^T y_b` over the `b` of each slot: `(count, k, m)`, and 0 without a `b`."""
    products = jnp.einsum("bnk,bnm->bkm", x, y).astype(dtype)
    return jnp.zeros((count, *products.shape[1:]), dtype).at[slots].add(products)


def _looped_times(x: Array, M: Array, slots: Array, *, transposed: bool) -> Array:
    """`_gathered_times`, one block of examples after the other, without copies."""
    if not _pays(x, *M.shape[1:]):
        return _gathered_times(x, M, slots, transposed=transposed)
    blocks = _blocks_of(x, slots, len(M))
    rows = blocks.sorted_rows(x)

    def write(first: Array, slot: Array, y: Array) -> Array:
        own = lax.dynamic_index_in_dim(M, slot, keepdims=False).astype(x.dtype)
        product = blocks.cut(rows, first) @ (own.T if transposed else own)
        # The rows behind those of the slot are wrong until the next block writes them.
        return lax.dynamic_update_slice_in_dim(y, product, first * blocks.n, 0)

    width = M.shape[1 if transposed else 2]
    y = blocks.loop(write, jnp.zeros((len(rows), width), x.dtype))
    places = jnp.zeros_like(blocks.order).at[blocks.order].set(jnp.arange(len(x)))
    return y.reshape(-1, x.shape[1], width)[places]


def _looped_outer(x: Array, y: Array, slots: Array, *, count: int, dtype: Any) -> Array:
    """`_gathered_outer`, by such a loop. Only the result is as large as all matrices."""
    if not _pays(x, x.shape[2], y.shape[2]):
        return _gathered_outer(x, y, slots, count=count, dtype=dtype)
    blocks = _blocks_of(x, slots, count)
    lefts, rights = blocks.sorted_rows(x), blocks.sorted_rows(y)
    missing = (0, blocks.size * blocks.n)
    of_row = jnp.pad(jnp.repeat(blocks.slots, blocks.n), missing, constant_values=count)

    def write(first: Array, slot: Array, sums: Array) -> Array:
        is_own = (blocks.cut(of_row, first) == slot)[:, None]
        # Both, since the NaN of another slot's example times zero is NaN.
        left, right = (jnp.where(is_own, blocks.cut(rows, first), 0) for rows in (lefts, rights))
        product = (left.T @ right).astype(dtype)
        own = lax.dynamic_index_in_dim(sums, slot, keepdims=False) + product
        return lax.dynamic_update_index_in_dim(sums, own, slot, 0)

    return blocks.loop(write, jnp.zeros((count, x.shape[2], y.shape[2]), dtype))


def _pays(x: Array, *sides: int) -> bool:
    """Whether the loop is faster than copies of the matrices for all examples.

    An example with more rows than the rank copies less than its rows, and multiplies them at once.
    """
    return len(x) > 1 and x.shape[1] < min(sides)


def _ragged_times(x: Array, M: Array, slots: Array, *, transposed: bool) -> Array:
    """`_gathered_times` by one product of sorted rows, which TPUs have."""
    order = jnp.argsort(slots, stable=True)
    sizes = jnp.bincount(slots, length=len(M)).astype(jnp.int32) * x.shape[1]
    rows, own = x[order].reshape(-1, x.shape[2]), M.astype(x.dtype)
    y = lax.ragged_dot(rows, own.mT if transposed else own, sizes)
    y = y.reshape(*x.shape[:2], -1)
    return jnp.zeros_like(y).at[order].set(y, unique_indices=True)


class _Blocks(NamedTuple):
    """The examples sorted by slot, and cut into blocks of one slot, at most `size` examples each.

    - `order`: the example at each place; `slots`: its slot.
    - `firsts`: the place of the first example of each block; `total`: the number of blocks.
    - `n`: the rows of each example.
    """

    order: Int[Array, " b"]
    slots: Int[Array, " b"]
    firsts: Int[Array, " b"]
    total: Int[Array, ""]
    size: int
    n: int

    def sorted_rows(self, x: Float[Array, "b n k"]) -> Float[Array, "rows k"]:
        """The rows of all examples in order, and enough others for the last block to be whole."""
        order = jnp.concatenate([self.order, self.order[: self.size]])
        return x[order].reshape(-1, x.shape[2])

    def cut(self, rows: Array, first: Array) -> Array:
        """The rows of the block that begins with the example at the place `first`."""
        return lax.dynamic_slice_in_dim(rows, first * self.n, self.size * self.n)

    def loop(self, write: Callable[[Array, Array, Array], Array], start: Array) -> Array:
        """`result = write(first, slot, result)` for each block, in order."""

        def body(i: Array, result: Array) -> Array:
            first = self.firsts[i]
            return write(first, self.slots[first], result)

        return lax.fori_loop(0, self.total, body, start)


def _blocks_of(x: Array, slots: Array, count: int) -> _Blocks:
    examples, n = x.shape[:2]
    # As many as a slot has on average: a block that is not full wastes products, and each costs an
    # iteration.
    size = max(1, min(_ROWS // n, -(-examples // count)))
    order = jnp.argsort(slots, stable=True)
    slots = slots[order]
    # A block begins at the first example of a slot, and after every `size` of them.
    places = jnp.arange(examples)
    begins = (places - jnp.searchsorted(slots, slots).astype(places.dtype)) % size == 0
    return _Blocks(order, slots, jnp.flatnonzero(begins, size=examples), begins.sum(), size, n)


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


def _shape_of_times(x: Any, M: Any, slots: Any, *, transposed: bool) -> ShapedArray:
    return ShapedArray((*x.shape[:2], M.shape[1 if transposed else 2]), x.dtype)


def _shape_of_outer(x: Any, y: Any, slots: Any, *, count: int, dtype: Any) -> ShapedArray:
    return ShapedArray((count, x.shape[2], y.shape[2]), np.dtype(dtype))


_times = _primitive("jno_lora_slot_times", _shape_of_times)
_outer = _primitive("jno_lora_slot_outer", _shape_of_outer)

# One rule by the platform: a loop of small products suits a CPU, and keeps an accelerator waiting.
_lowered(_times, None, _gathered_times)
_lowered(_outer, None, _gathered_outer)
_lowered(_times, "cpu", _looped_times)
_lowered(_outer, "cpu", _looped_outer)
_lowered(_times, "tpu", _ragged_times)


def _by_operations(function: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of `jet` for a primitive: that of the operations of `function`."""

    def rule(primals: Any, series: Any, **params: Any) -> Any:
        *arrays, slots = primals
        return jet.jet(lambda *own: function(*own, slots, **params), arrays, series[:-1])

    return rule


jet.jet_rules[_times] = _by_operations(_gathered_times)
jet.jet_rules[_outer] = _by_operations(_gathered_outer)

ad.defjvp(
    _times,
    lambda dx, x, M, slots, **params: _times.bind(dx, M, slots, **params),
    lambda dM, x, M, slots, **params: _times.bind(x, dM, slots, **params),
    None,
)
ad.defjvp(
    _outer,
    lambda dx, x, y, slots, **params: _outer.bind(dx, y, slots, **params),
    lambda dy, x, y, slots, **params: _outer.bind(x, dy, slots, **params),
    None,
)


def _transpose_times(ct: Any, x: Any, M: Any, slots: Any, *, transposed: bool) -> list[Any]:
    is_x = ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        zero = ad.Zero(x.aval if is_x else M.aval)
        return [zero, None, None] if is_x else [None, zero, None]
    if is_x:
        return [_times.bind(ct, M, slots, transposed=not transposed), None, None]
    pair = (ct, x) if transposed else (x, ct)
    count, dtype = M.aval.shape[0], np.dtype(M.aval.dtype)
    return [None, _outer.bind(*pair, slots, count=count, dtype=dtype), None]


def _transpose_outer(ct: Any, x: Any, y: Any, slots: Any, **params: Any) -> list[Any]:
    is_x = ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        zero = ad.Zero(x.aval if is_x else y.aval)
        return [zero, None, None] if is_x else [None, zero, None]
    if is_x:
        return [_times.bind(y, ct, slots, transposed=True), None, None]
    return [None, _times.bind(x, ct, slots, transposed=False), None]


ad.primitive_transposes[_times] = _transpose_times
ad.primitive_transposes[_outer] = _transpose_outer


def _batch_times(args: Any, dims: Any, *, transposed: bool) -> tuple[Array, int]:
    """The new axis lengthens `n` or `b`."""
    x, M, slots = args
    if dims[1:] == (None, None):  # more rows of the same examples
        x = jnp.moveaxis(x, dims[0], 1)
        rows = x.reshape(len(x), x.shape[1] * x.shape[2], x.shape[3])
        y = _times.bind(rows, M, slots, transposed=transposed)
        return y.reshape(*x.shape[:3], y.shape[2]), 1
    v = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    x, slots = _in_front(x, dims[0], v), _in_front(slots, dims[2], v)
    if dims[1] is not None:  # the stacks one after the other
        M = jnp.moveaxis(M, dims[1], 0)
        slots = _shifted(slots, M.shape[1])
        M = M.reshape(-1, *M.shape[2:])
    y = _times.bind(x.reshape(-1, *x.shape[2:]), M, slots.reshape(-1), transposed=transposed)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _batch_outer(args: Any, dims: Any, *, count: int, dtype: Any) -> tuple[Array, int]:
    v = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    x, y, slots = (_in_front(a, d, v) for a, d in zip(args, dims, strict=True))
    merged = (a.reshape(-1, *a.shape[2:]) for a in (x, y, _shifted(slots, count)))
    sums = _outer.bind(*merged, count=v * count, dtype=dtype)
    return sums.reshape(v, count, *sums.shape[1:]), 0


def _in_front(array: Array, dim: int | None, size: int) -> Array:
    """`array` with its batched axis in front, or copies of it there."""
    if dim is not None:
        return jnp.moveaxis(array, dim, 0)
    return jnp.broadcast_to(array, (size, *array.shape))


def _shifted(slots: Int[Array, "v b"], count: int) -> Int[Array, "v b"]:
    """The slots in stacks of `count` that lie one after the other."""
    return slots + count * jnp.arange(len(slots), dtype=slots.dtype)[:, None]


batching.primitive_batchers[_times] = _batch_times
batching.primitive_batchers[_outer] = _batch_outer

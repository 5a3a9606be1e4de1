"""Products of each example with the factors of its slot, one function for each kind of platform.

Shapes: `x` is `(b, n, k)` and `y` is `(b, n, m)`, `n` rows for each of `b` examples; `s` and
`slots` are `(b,)`. The factors of all slots are `A` `(count, r, k)` and `Bt` `(count, r, m)`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

# The most rows that the loop of CPUs multiplies at a time.
_ROWS = 64


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
    """`gathered_update` without copies, by a loop over blocks of examples with the same slot."""
    if len(x) < 2:
        return gathered_update(y, x, A, Bt, s, slots)
    flat = _flat(x)

    def add(examples: Array, slot: Array, scale: Array, y: Array) -> Array:
        h = _rows(flat, examples, x.shape[2]) @ _factor(A, slot, x.dtype).T
        h = jnp.repeat(scale, x.shape[1])[:, None] * h
        return _add_rows(y, h @ _factor(Bt, slot, x.dtype), examples, scale)

    return _loop(add, _flat(y), x.shape[1], len(A), s, slots).reshape(y.shape)


def looped_sums(x: Array, A: Array, y: Array, s: Array, slots: Array) -> Array:
    """`gathered_sums` by the same loop. No array but the result is as large as all factors."""
    if len(x) < 2:
        return gathered_sums(x, A, y, s, slots)

    def add(examples: Array, slot: Array, scale: Array, sums: Array) -> Array:
        left, right = (_rows_or_zeros(a, examples, scale) for a in (x, y))
        return _add_product(sums, _scaled_down(A, left, scale, slot), right, slot)

    zeros = jnp.zeros((*A.shape[:2], y.shape[2]), A.dtype)
    return _loop(add, zeros, x.shape[1], len(A), s, slots)


def looped_cotangents(
    ct: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array, *, of_x: bool
) -> list[Array]:
    """The cotangents of `x` (if asked for), `A` and `Bt`, for the cotangent of the update.

    One loop computes them all, so it reads the factors of a slot once for each block.
    """
    if len(x) < 2:
        dx = [gathered_update(jnp.zeros_like(x), ct, Bt, A, s, slots)] if of_x else []
        return [*dx, gathered_sums(ct, Bt, x, s, slots), gathered_sums(x, A, ct, s, slots)]

    def add(examples: Array, slot: Array, scale: Array, sums: list[Array]) -> list[Array]:
        *dx, dA, dBt = sums
        left, right = (_rows_or_zeros(a, examples, scale) for a in (x, ct))
        h, k = _scaled_down(A, left, scale, slot), _scaled_down(Bt, right, scale, slot)
        dx = [_add_rows(a, k.T @ _factor(A, slot, x.dtype), examples, scale) for a in dx]
        return [*dx, _add_product(dA, k, left, slot), _add_product(dBt, h, right, slot)]

    zeros = [jnp.zeros_like(a) for a in ([_flat(x)] if of_x else []) + [A, Bt]]
    *dx, dA, dBt = _loop(add, zeros, x.shape[1], len(A), s, slots)
    return [*(a.reshape(x.shape) for a in dx), dA, dBt]


def _loop(step: Callable[..., Any], result: Any, n: int, count: int, s: Array, slots: Array) -> Any:
    """`result = step(examples, slot, s, result)` for each block of one slot's examples.

    Blocks that are not full are padded with `s = 0` and the number `b`, which is not an example.
    """
    b = len(slots)
    # As many examples as a slot has on average, because larger blocks waste products on padding,
    # and smaller blocks need more iterations.
    size = max(1, min(_ROWS // max(n, 1), -(-b // count)))
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

    def body(i: Array, result: PyTree) -> PyTree:
        scale = s.at[examples[i]].get(mode="fill", fill_value=0)
        return step(examples[i], slot_of_block[i], scale, result)

    return lax.fori_loop(0, begins.sum(), body, result)


def _flat(x: Array) -> Array:
    """`x` without an axis of one row, for which XLA would choose another layout, and copy."""
    return x[:, 0] if x.shape[1] == 1 else x


def _rows(flat: Array, examples: Array, width: int) -> Array:
    return flat.at[examples].get(mode="clip").reshape(-1, width)


def _rows_or_zeros(x: Array, examples: Array, scale: Array) -> Array:
    """The rows of the examples with `s != 0`.

    The other rows are zero in both factors of a product, because NaN of another slot times zero
    would be NaN.
    """
    is_zero = jnp.repeat(scale == 0, x.shape[1])[:, None]
    return jnp.where(is_zero, 0, _rows(_flat(x), examples, x.shape[2]))


def _add_rows(y: Array, u: Array, examples: Array, scale: Array) -> Array:
    """`y` with the rows `u` added to the examples with `s != 0`."""
    u = u.reshape(len(examples), *y.shape[1:])
    return y.at[jnp.where(scale == 0, len(y), examples)].add(u, mode="drop")


def _scaled_down(M: Array, rows: Array, scale: Array, slot: Array) -> Array:
    """`(s rows M^T)^T`, because XLA on CPUs multiplies faster from the left by this layout.

    Zeros where `s = 0`, whatever is in `M`, because infinity times zero would be NaN.
    """
    h = _factor(M, slot, rows.dtype) @ rows.T
    scale = jnp.repeat(scale, len(rows) // len(scale))[None]
    return jnp.where(scale == 0, 0, scale * h)


def _add_product(sums: Array, h: Array, rows: Array, slot: Array) -> Array:
    """`sums` with `h rows` added in one slot."""
    total = _factor(sums, slot, sums.dtype) + (h @ rows).astype(sums.dtype)
    return lax.dynamic_update_index_in_dim(sums, total, slot, 0)


def _factor(M: Array, slot: Array, dtype: DTypeLike) -> Array:
    return lax.dynamic_index_in_dim(M, slot, keepdims=False).astype(dtype)


def ragged_update(y: Array, x: Array, A: Array, Bt: Array, s: Array, slots: Array) -> Array:
    """`gathered_update` by products of sorted rows, which TPUs have as an operation."""
    order = jnp.argsort(slots, stable=True)
    sizes = jnp.bincount(slots, length=len(A)).astype(jnp.int32) * x.shape[1]
    h = lax.ragged_dot(x[order].reshape(-1, x.shape[2]), A.astype(x.dtype).mT, sizes)
    h = h * jnp.repeat(s[order], x.shape[1])[:, None]
    u = lax.ragged_dot(h, Bt.astype(x.dtype), sizes).reshape(y.shape)
    u = jnp.zeros_like(y).at[order].set(u, unique_indices=True)
    return jnp.where((s == 0)[:, None, None], y, y + u)

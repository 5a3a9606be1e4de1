"""The functions that compute the updates of slots and their sums, for each platform.

Shapes: `x` is `(b, n, k)` and `y` is `(b, n, m)`, `n` rows for each of `b` examples; `s` and
`slots` are `(b,)`. The factors of all slots are `A` `(count, r, k)` and `Bt` `(count, r, m)`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

# The most rows that the loop multiplies at a time.
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
    """`gathered_update` without copies: a loop over blocks of examples with the same slot."""
    if len(x) < 2:
        return gathered_update(y, x, A, Bt, s, slots)
    flat = _flat(x)

    def add(examples: Array, slot: Array, y: Array) -> Array:
        scale = s.at[examples].get(mode="fill", fill_value=0)
        h = _rows(flat, examples, x.shape[2]) @ _factor(A, slot, x.dtype).T
        h = jnp.repeat(scale, x.shape[1])[:, None] * h
        u = (h @ _factor(Bt, slot, x.dtype)).reshape(len(examples), *y.shape[1:])
        return y.at[jnp.where(scale == 0, len(x), examples)].add(u, mode="drop")

    return _loop(add, _flat(y), x, slots, len(A)).reshape(y.shape)


def looped_sums(x: Array, A: Array, y: Array, s: Array, slots: Array) -> Array:
    """`gathered_sums` by the same loop. Only the result is as large as all factors."""
    if len(x) < 2:
        return gathered_sums(x, A, y, s, slots)
    flat_x, flat_y = _flat(x), _flat(y)

    def add(examples: Array, slot: Array, sums: Array) -> Array:
        scale = jnp.repeat(s.at[examples].get(mode="fill", fill_value=0), x.shape[1])[:, None]
        h = scale * (_rows(flat_x, examples, x.shape[2]) @ _factor(A, slot, x.dtype).T)
        # Zeros in both factors: NaN of an example of another slot, times zero, would be NaN.
        h = jnp.where(scale == 0, 0, h)
        right = jnp.where(scale == 0, 0, _rows(flat_y, examples, y.shape[2]))
        total = _factor(sums, slot, A.dtype) + (h.T @ right).astype(A.dtype)
        return lax.dynamic_update_index_in_dim(sums, total, slot, 0)

    return _loop(add, jnp.zeros((*A.shape[:2], y.shape[2]), A.dtype), x, slots, len(A))


def _loop(
    step: Callable[[Array, Array, Array], Array], start: Array, x: Array, slots: Array, count: int
) -> Array:
    """`result = step(examples, slot, result)` for each block of examples of one slot.

    A block that is not full is padded with the number `b`, which no example has.
    """
    b, n = x.shape[:2]
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
        return step(examples[i], slot_of_block[i], result)

    return lax.fori_loop(0, begins.sum(), body, start)


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

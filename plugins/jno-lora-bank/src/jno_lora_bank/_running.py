"""Calls of a model with slots: at one slot, or for a batch with a slot for each example."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import map_adapters

from ._slots import Slots, SumSlots, layers_with_slots

M = TypeVar("M")


def at_slot(model: M, slot: Any) -> M:
    """`model` with the adapters of one slot in use. Inside `vmap`, one slot per example.

        jax.vmap(lambda x, slot: at_slot(model, slot)(x))(xs, slots)

    **Arguments:**

    - `model`: the `model` of a bank or of a `Snapshot`, perhaps trained.
    - `slot`: one whole number, which may be traced. 0 means the base alone. If a traced slot is
        empty or does not exist, the outputs of the adapted layers are NaN.

    **Raises:** `SelectionError` if the slot is known and does not exist, or is not one whole
    number; or if `model` does not come from a bank.
    """
    layer = next((layer for _, layer in layers_with_slots(model)), None)
    if layer is None:
        raise SelectionError(
            "`model` has no slots. Give the `model` of a bank with at least one adapter."
        )
    is_int = isinstance(slot, int) and not isinstance(slot, bool)
    is_integer = is_int or jnp.issubdtype(getattr(slot, "dtype", bool), jnp.integer)
    if not is_integer or jnp.ndim(slot) > 0:
        raise SelectionError(f"`slot` must be one whole number, but is {slot!r}.")
    count = layer.scale.shape[-1]
    if not isinstance(slot, Tracer) and not 0 <= int(slot) < count:
        raise SelectionError(f"There is no slot {slot}: the bank has {count}, from 0.")
    index = jnp.asarray(slot).astype(int)
    # Marked before the cast to 32 bits, which could turn the number into another slot.
    index = jnp.where((index >= 0) & (index < count), index, -1).astype(jnp.int32)

    def put(_: str, adapter: LoRAWrapper) -> LoRAWrapper:
        if not isinstance(adapter, Slots | SumSlots):
            return adapter
        indices = jnp.broadcast_to(index, adapter.slot.shape)
        return eqx.tree_at(lambda slots: slots.slot, adapter, indices)

    return map_adapters(put, model)


# The slot is an array of the model, and not a constant of the program.
call_one = eqx.filter_jit(operator.call)


@eqx.filter_jit
def call_batch(model: PyTree, slots: PyTree, args: PyTree, function: Callable[..., Any]) -> PyTree:
    return eqx.filter_vmap(lambda slot, args: function(in_slot(model, slot), *args))(slots, args)


def in_slot(model: M, slot: Any) -> M:
    """`at_slot`, or the model itself if it has no slots yet."""
    return at_slot(model, slot) if any(layers_with_slots(model)) else model


def check_names(names: Sequence[str | None], args: PyTree) -> None:
    """**Raises:** `SelectionError` unless there is one name for each example of the arguments."""
    arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array | np.ndarray)]
    sizes = sorted({x.shape[:1] for x in arrays} - {(len(names),)})
    if isinstance(names, str) or sizes:
        raise SelectionError(
            "`names` must be a list with one name for each example, but is "
            f"{names!r}, and the first axes of the arguments are {sizes}."
        )

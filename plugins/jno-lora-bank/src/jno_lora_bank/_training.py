"""Train adapters in their slots: which factors train, and an optimiser for all slots."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jno.lora import AdapterSet, SelectionError
from jno.lora.extending import imported_for, path_str, show_path

from ._slots import Slots
from ._state import FACTOR_NDIM, State
from ._values import FACTORS

# Which slots train, by the path of a layer and the field.
Moving = dict[tuple[str, str], Bool[np.ndarray, " slots"]]


def slots_to_train(
    state: State, rates: Mapping[str, float], sets: Mapping[str, AdapterSet]
) -> tuple[Float[np.ndarray, " slots"], Moving]:
    """The learning rate of each slot, and which slots train. **Raises:** as `optimiser`."""
    for name, rate in rates.items():
        if name is None or callable(rate):
            raise SelectionError(
                f"`rates` must hold a number for the name of an adapter, but has {rate!r} for "
                f"{name!r}. Put a schedule into `make`: lambda rate: "
                "optax.adam(lambda step: rate * schedule(step))"
            )
    slots, count = state.snapshot.indices(rates), state.capacity
    moving = {key: np.zeros(count, bool) for key in state.places if key[1] in FACTORS.values()}
    for name, slot in zip(rates, slots, strict=True):
        for path, adapter in sets[name].adapters.items():
            if not adapter.is_product:
                raise SelectionError(
                    f"{name!r} cannot train in a bank: its {adapter.wrapper.__name__} at "
                    f"{show_path(path)!r} is not just a product of its own factors. Train it in a "
                    f"net: Net(swap_adapters(model, bank.adapters({name!r})))."
                )
            for factor, field in FACTORS.items():
                moving[path, field][slot] = factor in adapter.wrapper.adapter_fields
    slot_rates = np.zeros(count)
    slot_rates[slots] = list(rates.values())
    return slot_rates, moving


def slotwise(make: Callable[[Any], Any], rates: Float[Any, " slots"], moving: Moving) -> Any:
    """`make(rate)` for each slot, as one optimiser of the factors of all slots."""
    with imported_for("AdapterBank.optimiser", "train", "optax"):
        import optax

    def rates_like(factors: PyTree) -> Array:
        """The rates in the dtype of the factors, because a traced rate would change this dtype."""
        return jnp.asarray(rates, next((x.dtype for x in jax.tree.leaves(factors)), None))

    def only_moving(keys: jtu.KeyPath, x: Array) -> Array:
        """`x`, whose first axis is the slots, with zeros in the slots that do not train."""
        path, _, field = path_str(keys).rpartition("/")
        is_moving = moving[path, field]
        return jnp.where(is_moving.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)

    def init(params: PyTree) -> PyTree:
        params = _slots_first(params)
        return jax.vmap(lambda rate, x: make(rate).init(x))(rates_like(params), params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # Before, so that norms leave out frozen factors; and after, so that these do not decay.
        updates = jtu.tree_map_with_path(only_moving, _slots_first(updates))
        args = rates_like(updates), updates, state, _slots_first(params)
        updates, state = jax.vmap(lambda rate, *trees: make(rate).update(*trees))(*args)
        updates = jtu.tree_map_with_path(only_moving, updates)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -FACTOR_NDIM), updates), state

    return optax.GradientTransformation(init, update)


def _slots_first(tree: PyTree) -> PyTree:
    """The factors, with the axis of slots before the axes of a stack."""

    def move(keys: jtu.KeyPath, x: Array) -> Array:
        path = path_str(keys)
        if path.rpartition("/")[2] not in Slots.adapter_fields:
            raise SelectionError(
                f"{path} is not a factor of a slot. Give the optimiser of a bank the trainable "
                "tree that bank.partition() returns."
            )
        return jnp.moveaxis(x, -FACTOR_NDIM, 0)

    return jtu.tree_map_with_path(move, tree)

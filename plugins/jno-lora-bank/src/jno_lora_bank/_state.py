"""The arrays of a bank: the model with its slots, and how a slot is written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from jno.lora.extending import path_str, sharded_like

from ._slot_table import SlotTable, Snapshot
from ._slots import layers_with_slots
from ._values import Values

# The number of axes of each array of `Slots`, from its axis of slots on.
SLOT_NDIM = {"lora_A": 3, "lora_Bt": 3, "scale": 1, "gain": 2, "shift": 2}
# By the path of a layer and the field.
Arrays = dict[str, dict[str, Any]]


class State(NamedTuple):
    """The model as leaves, and where in them the arrays of each layer's slots are.

    - `places`: the index in `leaves` of each array, by the path of the layer and the field.
    - `is_shared`: whether somebody else may hold the arrays of slots.
    """

    leaves: list[Any]
    treedef: Any
    places: Mapping[str, Mapping[str, int]]
    table: SlotTable
    is_shared: bool = False

    @classmethod
    def of(cls, model: PyTree, table: SlotTable) -> "State":
        """The state with this model, whose slots nobody else holds."""
        pairs, treedef = jtu.tree_flatten_with_path(model)
        places: dict[str, dict[str, int]] = {path: {} for path, _ in layers_with_slots(model)}
        for place, (keys, _) in enumerate(pairs):
            path, _, field = path_str(keys).rpartition("/")
            if path in places and field in SLOT_NDIM:
                places[path][field] = place
        return cls([leaf for _, leaf in pairs], treedef, places, table)

    @property
    def snapshot(self) -> Snapshot:
        """The model and the names."""
        return Snapshot(jtu.tree_unflatten(self.treedef, self.leaves), self.table.slots)

    def arrays(self, path: str) -> dict[str, Array]:
        """The arrays of the slots of one layer, by field."""
        return {field: self.leaves[place] for field, place in self.places.get(path, {}).items()}

    def in_slot(self, slot: int, path: str, field: str) -> Array:
        """The array of one slot."""
        array = self.leaves[self.places[path][field]]
        return lax.index_in_dim(array, slot, _slot_axis(field, array), keepdims=False)

    def filled(self, slot: int, values: Mapping[str, Values]) -> "State":
        """The state with only `values` in one slot. This state may become unusable."""
        # Layers and fields that `values` lack get numbers without effect: a gain of 1, else 0.
        every = {
            path: {f: values.get(path, {}).get(f, float(f == "gain")) for f in fields}
            for path, fields in self.places.items()
        }
        return self._written(slot, every)._replace(is_shared=False)  # all arrays of slots are new

    def emptied(self, slot: int) -> "State":
        """The state whose slot is marked as empty. This state may become unusable."""
        empty = {
            path: {"scale": np.full(self.arrays(path)["scale"].shape[:-1], np.nan)}
            for path in self.places
        }
        return self._written(slot, empty)  # the other arrays are as shared as before

    def _written(self, slot: int, values: Mapping[str, Values]) -> "State":
        """The state with these values in one slot, in the fields that `values` hold."""
        arrays = {path: {f: self.arrays(path)[f] for f in values[path]} for path in values}
        entries = {
            path: {f: _padded(value, f, arrays[path][f]) for f, value in fields.items()}
            for path, fields in values.items()
        }
        write = _write if self.is_shared else _write_in_place
        written = sharded_like(write(arrays, entries, np.int32(slot)), arrays)
        leaves = list(self.leaves)
        for path, fields in written.items():
            for field, array in fields.items():
                leaves[self.places[path][field]] = array
        return self._replace(leaves=leaves)


def _slot_axis(field: str, array: Array) -> int:
    return array.ndim - SLOT_NDIM[field]


def _padded(value: Any, field: str, array: Array) -> Any:
    """`value` as an entry of `array`, with zeros at the end of each axis that is too short."""
    axis = _slot_axis(field, array)
    shape = (*array.shape[:axis], *array.shape[axis + 1 :])
    if isinstance(value, jax.Array) and value.shape == shape:
        return value.astype(array.dtype)
    value = np.asarray(value, array.dtype)
    if value.ndim < len(shape):
        return np.broadcast_to(value, shape)
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(0, size) for size in value.shape)] = value
    return padded


def _write_slot(arrays: Arrays, entries: Arrays, slot: Any) -> Arrays:
    def write(path: str, field: str, array: Array) -> Array:
        axis = _slot_axis(field, array)
        return lax.dynamic_update_index_in_dim(array, entries[path][field], slot, axis)

    return {path: {f: write(path, f, x) for f, x in arrays[path].items()} for path in arrays}


_write = jax.jit(_write_slot)
_write_in_place = jax.jit(_write_slot, donate_argnums=0)

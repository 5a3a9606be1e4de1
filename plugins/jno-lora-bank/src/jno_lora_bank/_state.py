"""The state of a bank: the model and its slots, and how to write a slot."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jno.lora import SelectionError
from jno.lora.extending import nearest, path_str, sharded_like, show_path

from ._slots import layers_with_slots

# The fields with an axis of slots, which follows the axes of a stack.
_FIELDS = ("lora_A", "lora_Bt", "scale", "gain", "shift", "states")
FACTOR_NDIM = 3  # the number of axes of a factor, from its axis of slots on
# The path of a layer, and the path of an array in its slots: `lora_A`, `states/lora_A/weight`.
Key = tuple[str, str]


class Snapshot(NamedTuple):
    """A bank at one moment. Later changes of the bank do not change it.

    - `model`: with all slots in its adapted layers, for `at_slot`.
    - `slots`: the slot of each adapter, by name.
    """

    model: PyTree
    slots: Mapping[str, int]

    def indices(self, names: Iterable[str | None]) -> Int[np.ndarray, " n"]:
        """The slots of these names. `None` means the base alone, slot 0.

        **Raises:** `SelectionError` for a name that the bank does not have.
        """
        return np.asarray([self.slot(name) for name in names], np.int32)

    def slot(self, name: str | None) -> int:
        """The slot of a name. **Raises:** as `indices`."""
        if name is None:
            return 0
        if name not in self.slots:
            near = ", ".join(map(repr, nearest(str(name), self.slots, n=3))) or "none"
            raise SelectionError(
                f"The bank has no adapter {name!r} (the nearest names: {near}). It was never added "
                "or was removed; None is the base alone."
            )
        return self.slots[name]


class State(NamedTuple):
    """The model as leaves, and the contents of its slots.

    - `places`: the index in `leaves` of each array of slots.
    - `stacks`: the number of axes of a stack, by the path of each layer with slots.
    - `free`: the empty slots. The next adapter goes into the first.
    - `is_shared`: whether the arrays of slots may be in use elsewhere.
    """

    leaves: list[Any]
    treedef: Any
    places: Mapping[Key, int]
    stacks: Mapping[str, int]
    slots: Mapping[str, int]
    free: tuple[int, ...]
    is_shared: bool = False

    @classmethod
    def of(cls, model: PyTree, slots: Mapping[str, int], free: tuple[int, ...]) -> "State":
        """The state of this model, whose arrays of slots are not in use elsewhere."""
        leaves, treedef = jtu.tree_flatten_with_path(model)
        layers = dict(layers_with_slots(model))
        stacks = {path: type(layer).stack_ndim(layer.base) for path, layer in layers.items()}
        places: dict[Key, int] = {}
        for place, (keys, _) in enumerate(leaves):
            for length in range(len(keys)):
                path, field = path_str(keys[:length]), path_str(keys[length:])
                if path in layers and field.partition("/")[0] in _FIELDS:
                    places[path, field] = place
        return cls([leaf for _, leaf in leaves], treedef, places, stacks, slots, free)

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(jtu.tree_unflatten(self.treedef, self.leaves), self.slots)

    @property
    def capacity(self) -> int:
        """The number of slots, with slot 0."""
        return 1 + len(self.slots) + len(self.free)

    def in_slot(self, slot: int, path: str, field: str) -> Array:
        array = self.leaves[self.places[path, field]]
        return lax.index_in_dim(array, slot, self.stacks[path], keepdims=False)

    def filled(self, name: str, values: Mapping[str, Mapping[str, ArrayLike]]) -> "State":
        """The state with only `values` in the slot of `name`. This state may become unusable."""
        slot = self.slots[name] if name in self.slots else self.free[0]
        # Layers and fields that are not in `values` get neutral numbers: 1 for a gain, else 0.
        every = {
            (path, field): values.get(path, {}).get(field, float(field == "gain"))
            for path, field in self.places
        }
        slots = MappingProxyType({**self.slots, name: slot})
        free = tuple(number for number in self.free if number != slot)
        # All arrays of slots are new.
        return self._written(slot, every)._replace(slots=slots, free=free, is_shared=False)

    def check_forms(self, values: Mapping[str, Mapping[str, ArrayLike]]) -> None:
        """**Raises:** `SelectionError` if a state in `values` differs in form from its slots."""
        for path, fields in values.items():
            expected = {
                field: self.in_slot(0, at, field).shape
                for at, field in self.places
                if at == path and field.startswith("states/")
            }
            given = {name: np.shape(x) for name, x in fields.items() if name.startswith("states/")}
            if given != expected:
                raise SelectionError(
                    f"{show_path(path)}: the adapter has arrays of other shapes than the adapters "
                    "in the bank. All adapters of a layer need the same options, such as `bands` "
                    "or `per`. Use a second bank: AdapterBank(model, {'name': adapters})."
                )

    def emptied(self, name: str) -> "State":
        """The state without an adapter of this name. This state may become unusable."""
        slots = dict(self.slots)
        slot = slots.pop(name)
        written = self._written(slot, {key: np.nan for key in self.places if key[1] == "scale"})
        # The other arrays are as shared as before.
        return written._replace(slots=MappingProxyType(slots), free=(*self.free, slot))

    def _written(self, slot: int, values: Mapping[Key, ArrayLike]) -> "State":
        arrays = {key: self.leaves[self.places[key]] for key in values}
        entries = {
            key: _padded(value, self.stacks[key[0]], arrays[key]) for key, value in values.items()
        }
        write = _write if self.is_shared else _write_in_place
        stacks = tuple(self.stacks.items())
        written = sharded_like(write(arrays, entries, np.int32(slot), stacks), arrays)
        leaves = list(self.leaves)
        for key, array in written.items():
            leaves[self.places[key]] = array
        return self._replace(leaves=leaves)


def _padded(value: ArrayLike, axis: int, array: Array) -> Array | np.ndarray:
    """`value` as an entry of `array` along `axis`, with zeros at the end of axes that are short."""
    shape = (*array.shape[:axis], *array.shape[axis + 1 :])
    if isinstance(value, jax.Array) and value.shape == shape:
        return value.astype(array.dtype)
    value = np.asarray(value, array.dtype)
    if value.ndim < len(shape):
        return np.broadcast_to(value, shape)
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(0, size) for size in value.shape)] = value
    return padded


def _write_slot(
    arrays: dict[Key, Array],
    entries: dict[Key, Array],
    slot: Array,
    stacks: tuple[tuple[str, int], ...],
) -> dict[Key, Array]:
    axes = dict(stacks)
    return {
        key: lax.dynamic_update_index_in_dim(array, entries[key], slot, axes[key[0]])
        for key, array in arrays.items()
    }


_write = jax.jit(_write_slot, static_argnums=3)
_write_in_place = jax.jit(_write_slot, donate_argnums=0, static_argnums=3)

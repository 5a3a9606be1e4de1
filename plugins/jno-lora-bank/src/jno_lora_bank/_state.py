"""The state of a bank: the model and its slots, how a slot is written, and how slots grow."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jno.lora import AdapterSet, SelectionError
from jno.lora.extending import (
    layers_at,
    nearest,
    over_stack,
    path_str,
    put_around,
    sharded_like,
    show_path,
)
from jno.lora.types import LayerForm, LooseAdapter

from ._slots import Slots, SumSlots, layers_with_slots, slots_class
from ._values import Values, rank_needed

# The fields with an axis of slots, which follows the axes of a stack.
_FIELDS = ("lora_A", "lora_Bt", "scale", "gain", "shift", "states")
FACTOR_NDIM = 3  # the number of axes of a factor, from its axis of slots on
# The fields of `Slots` that a layer may lack.
_OPTIONAL = frozenset({"gain", "shift"})
# The path of a layer, and the path of an array in its slots: `lora_A`, `states/lora_A/weight`.
Key = tuple[str, str]


class Snapshot(NamedTuple):
    """A bank at one moment. Later changes of the bank do not change it.

    - `model`: with all slots in its adapted layers, for `at_slot`.
    - `slots`: the slot of each adapter, by name.
    """

    model: Any
    slots: Mapping[str, int]

    def indices(self, names: Iterable[str | None]) -> Int[np.ndarray, " n"]:
        """The slots of these names. `None` is the base alone, slot 0.

        **Raises:** `SelectionError` for a name that the bank does not have.
        """
        return np.asarray([self.slot(name) for name in names], np.int32)

    def slot(self, name: str | None) -> int:
        """The slot of one name. **Raises:** as `indices`."""
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
    """The model as leaves, and what its slots hold.

    - `places`: the index in `leaves` of each array of slots.
    - `stacks`: the number of axes of a stack, by the path of each layer with slots.
    - `free`: the empty slots. The next adapter goes into the first.
    - `is_shared`: whether somebody else may hold the arrays of slots.
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
        """The state with this model, whose arrays of slots nobody else holds."""
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

    def filled(self, name: str, values: Mapping[str, Values]) -> "State":
        """The state with only `values` in the slot of `name`. This state may become unusable."""
        slot = self.slots[name] if name in self.slots else self.free[0]
        # Layers and fields that `values` lack get numbers without effect: a gain of 1, else 0.
        every = {
            (path, field): values.get(path, {}).get(field, float(field == "gain"))
            for path, field in self.places
        }
        slots = MappingProxyType({**self.slots, name: slot})
        free = tuple(number for number in self.free if number != slot)
        # All arrays of slots are new.
        return self._written(slot, every)._replace(slots=slots, free=free, is_shared=False)

    def check_forms(self, values: Mapping[str, Values]) -> None:
        """**Raises:** `SelectionError` if a state in `values` differs in form from its slots."""
        for path, fields in values.items():
            expected = {
                field: self.in_slot(0, at, field).shape
                for at, field in self.places
                if at == path and field.startswith("states/")
            }
            given = {name: x.shape for name, x in fields.items() if name.startswith("states/")}
            if given != expected:
                raise SelectionError(
                    f"{show_path(path)}: the adapter has arrays of other shapes than the adapters "
                    "in the bank. All adapters of a layer need the same options, such as `bands` "
                    "or `per`: give adapters with other options another bank."
                )

    def emptied(self, name: str) -> "State":
        """The state without an adapter of this name. This state may become unusable."""
        slots = dict(self.slots)
        slot = slots.pop(name)
        written = self._written(slot, {key: np.nan for key in self.places if key[1] == "scale"})
        # The other arrays are as shared as before.
        return written._replace(slots=MappingProxyType(slots), free=(*self.free, slot))

    def _written(self, slot: int, values: Mapping[Key, Any]) -> "State":
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


def _padded(value: Any, axis: int, array: Array) -> Any:
    """`value` as an entry of `array` along `axis`, with zeros at the end of axes too short."""
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
    arrays: dict[Key, Any], entries: dict[Key, Any], slot: Any, stacks: tuple[tuple[str, int], ...]
) -> dict[Key, Array]:
    axes = dict(stacks)
    return {
        key: lax.dynamic_update_index_in_dim(array, entries[key], slot, axes[key[0]])
        for key, array in arrays.items()
    }


_write = jax.jit(_write_slot, static_argnums=3)
_write_in_place = jax.jit(_write_slot, donate_argnums=0, static_argnums=3)


class Room(NamedTuple):
    """What the slots of one layer have room for: a class, a rank, and optional fields."""

    cls: type[Slots | SumSlots]
    rank: int
    fields: frozenset[str]


def room_for(
    state: State, adapters: AdapterSet, values: Mapping[str, Values], rank: int
) -> tuple[dict[str, Room], list[str]]:
    """The room that the layers need if they also hold these adapters, and what they lack now.

    **Raises:** `SelectionError` for an adapter of another layer kind than the adapters in the bank.
    """
    rooms = {
        path: Room(type(slots), slots.rank or 0, _OPTIONAL & slots.state().keys())
        for path, slots in layers_with_slots(state.snapshot.model)
    }
    lacking: list[str] = []
    for path, fields in values.items():
        cls: Any = slots_class(adapters[path].wrapper)
        needed = Room(cls, rank_needed(cls, fields, rank), _OPTIONAL & fields.keys())
        if path not in rooms:
            lacking.append(f"slots in the layer {show_path(path)!r}")
            rooms[path] = needed
            continue
        present = rooms[path]
        if present.cls is not cls:
            raise SelectionError(
                f"{show_path(path)}: the {adapters[path].wrapper.__name__} sees the matrix of "
                "the layer in another way than the adapters in the bank."
            )
        if needed.rank > present.rank:
            lacking.append(f"rank {needed.rank} at {show_path(path)!r} (it has {present.rank})")
        new_fields = sorted(needed.fields - present.fields)
        lacking += [f"a {field} of the outputs of {show_path(path)!r}" for field in new_fields]
        rooms[path] = Room(cls, max(needed.rank, present.rank), needed.fields | present.fields)
    return rooms, lacking


def grown(
    state: State,
    model: PyTree,
    rooms: Mapping[str, Room],
    axis: str | None,
    values: Mapping[str, Values],
) -> State:
    """The state with the plain `model`, and with `rooms` that are at least as large as now.

    - `values`: the values to come. Slots of a new layer with a `sum_of` get their form.
    """
    layers, old_layers = layers_at(model, rooms), dict(layers_with_slots(state.snapshot.model))
    used = np.asarray([0, *state.slots.values()])
    adapters: dict[str, LooseAdapter] = {}
    for path, room in rooms.items():
        layer = layers[path]
        ndim = room.cls.stack_ndim(layer)
        old, scales = old_layers.get(path), (room.rank, 1.0)
        if issubclass(room.cls, SumSlots):
            old = None if old is None else old.at_higher_rank(room.rank)
            form = values[path]["sum"] if old is None else old.term
            arrays = SumSlots.empty_slots(
                form.state, state.capacity, ndim, has_slots=old is not None
            )
            scales = form.rank, form.alpha
        else:
            arrays = over_stack(partial(_empty, room, state.capacity), ndim)(layer)
        if old is not None:
            for field, array in old.state().items():
                arrays[field] = _with_corner(arrays[field], array)
        else:  # the adapters so far leave this layer as it is
            arrays["scale"] = arrays["scale"].at[..., used].set(0)
        adapters[path] = LooseAdapter(arrays, room.cls, *scales, LayerForm.of(layer, ndim))
    larger = State.of(put_around(model, AdapterSet(adapters)), state.slots, state.free)
    if axis is not None:
        for (path, _), place in larger.places.items():
            larger.leaves[place] = _split(larger.leaves[place], larger.stacks[path], axis)
    return larger


def _with_corner(array: Array, corner: Array) -> Array:
    """`array` with `corner` at its beginning. NumPy writes it, for JAX would compile a program."""
    inside = tuple(slice(0, size) for size in corner.shape)
    if not (array.is_fully_addressable and corner.is_fully_addressable):
        return array.at[inside].set(corner)
    values = np.array(array)
    values[inside] = corner
    place = array.sharding if array.committed else None
    return jax.device_put(values, place, may_alias=False)


def _empty(room: Room, slots: int, layer: Any) -> dict[str, Array]:
    make: Any = room.cls
    options = dict.fromkeys(room.fields, True)
    return make(layer, room.rank, 1.0, key=jax.random.key(0), slots=slots, **options).state()


def axis_size(model: PyTree, axis: str) -> int:
    """**Raises:** `SelectionError` if the mesh of `model` has no such axis."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(model))
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    for mesh in meshes:
        if axis in mesh.shape:
            return mesh.shape[axis]
    axes = ", ".join(dict.fromkeys(name for mesh in meshes for name in mesh.shape)) or "none"
    raise SelectionError(f"`axis` is {axis!r}, but the mesh of the model has the axes: {axes}.")


def _split(array: Array, slot_axis: int, axis: str) -> Array:
    """`array` with its axis of slots, and no other axis, split over a mesh axis."""
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding):
        return array
    spec: list[Any] = [*sharding.spec, *(None,) * (array.ndim - len(sharding.spec))]
    spec = [None if name == axis else name for name in spec]
    spec[slot_axis] = axis
    return jax.device_put(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))

"""Grow the slots of a bank: find the room that adapters need, and copy values to larger slots."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jno.lora import AdapterSet, LayerForm, LooseAdapter, SelectionError
from jno.lora.extending import layers_at, over_stack, put_around, show_path

from ._slots import Slots, SumSlots, layers_with_slots
from ._state import State
from ._values import SumValues, Values

# The optional fields of `Slots`.
_OPTIONAL = frozenset({"gain", "shift"})


class Room(NamedTuple):
    """The room in the slots of one layer: a class, a rank, and optional fields."""

    cls: type[Slots | SumSlots]
    rank: int
    fields: frozenset[str]


def room_for(
    state: State, adapters: AdapterSet, values: Mapping[str, Values], rank: int
) -> tuple[dict[str, Room], list[str]]:
    """The room that the layers need for these adapters too, and a list of the missing room.

    **Raises:** `SelectionError` if an adapter's layer kind differs from the bank's adapters.
    """
    rooms = {
        path: Room(type(slots), slots.rank or 0, _OPTIONAL & slots.state().keys())
        for path, slots in layers_with_slots(state.snapshot.model)
    }
    lacking: list[str] = []
    are_products = all(adapter.is_product for adapter in adapters.adapters.values())
    for path, new in values.items():
        needed = Room(new.cls, new.rank_needed(rank), _OPTIONAL & new.arrays.keys())
        if path not in rooms:
            lacking.append(f"slots in the layer {show_path(path)!r}")
            rooms[path] = needed
            continue
        present = rooms[path]
        if present.cls is not needed.cls:
            raise SelectionError(
                f"{show_path(path)}: the {adapters[path].wrapper.__name__} needs slots of another "
                "kind than the adapters in the bank, because it sees the layer in another way. "
                "Use a second bank: AdapterBank(model, {'name': adapters})."
            )
        if needed.rank > present.rank:
            lora = f"to_lora(swap_adapters(model, adapters), rank={present.rank})"
            cut = f": extract_adapters({lora}[0]) cuts it"
            has = f"rank {needed.rank} at {show_path(path)!r} (it has {present.rank})"
            lacking.append(has + (cut if are_products else ""))
        new_fields = sorted(needed.fields - present.fields)
        lacking += [f"a {field} of the outputs of {show_path(path)!r}" for field in new_fields]
        fields = needed.fields | present.fields
        rooms[path] = Room(new.cls, max(needed.rank, present.rank), fields)
    return rooms, lacking


def grown(
    state: State,
    model: PyTree,
    rooms: Mapping[str, Room],
    axis: str | None,
    values: Mapping[str, Values],
) -> State:
    """The state of the plain `model` with `rooms`, which are at least as large as now.

    - `values`: the adapters to add, which give slots of a new layer with a `sum_of` their form.
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
            form = cast(SumValues, values[path]).term if old is None else old.term
            arrays = SumSlots.empty_slots(
                form.state, state.capacity, ndim, has_slots=old is not None
            )
            scales = form.rank, form.alpha
        else:
            arrays = over_stack(partial(_empty, room, state.capacity), ndim)(layer)
        if old is not None:
            for field, array in old.state().items():
                corner = tuple(map(slice, array.shape))
                arrays[field] = arrays[field].at[corner].set(array)
        else:  # the adapters so far leave this layer as it is
            arrays["scale"] = arrays["scale"].at[..., used].set(0)
        adapters[path] = LooseAdapter(arrays, room.cls, *scales, LayerForm.of(layer, ndim))
    larger = State.of(put_around(model, AdapterSet(adapters)), state.slots, state.free)
    if axis is not None:
        for (path, _), place in larger.places.items():
            larger.leaves[place] = _split(larger.leaves[place], larger.stacks[path], axis)
    return larger


def _empty(room: Room, slots: int, layer: PyTree) -> dict[str, Array]:
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

"""The state of a bank: the model with its slots, and how they are written."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jno.lora import AdapterSet, SelectionError
from jno.lora.extending import (
    adapted_layers,
    layers_at,
    nearest,
    over_stack,
    path_str,
    put_around,
    sharded_like,
)
from jno.lora.types import LayerForm, LooseAdapter

from ._slots import Slots
from ._values import Values

# The number of axes that an array of `Slots` has from its axis of slots on.
_NDIM = {"lora_A": 3, "lora_Bt": 3, "scale": 1, "gain": 2, "shift": 2}
# The fields of `Slots` that a layer may lack.
OPTIONAL = frozenset({"gain", "shift"})


class Snapshot(NamedTuple):
    """A bank at one moment. Later changes of the bank do not change it.

    - `model`: with all slots in its adapted layers, for `at_slot`.
    - `slots`: the slot of each adapter by its name.
    """

    model: Any
    slots: Mapping[str, int]

    def indices(self, names: Iterable[str | None]) -> Int[np.ndarray, " n"]:
        """The slots of these names; that of `None` is 0, the base alone.

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
    """The model as leaves, and where in them the arrays of each layer's slots are.

    - `free`: the empty slots, in the order in which they will be used.
    """

    leaves: list[Any]
    treedef: Any
    places: Mapping[str, Mapping[str, int]]
    slots: Mapping[str, int]
    free: tuple[int, ...]

    @classmethod
    def of(cls, model: PyTree, *rest: Any) -> "State":
        """The state with this model."""
        pairs, treedef = jtu.tree_flatten_with_path(model)
        index = {path_str(k): i for i, (k, _) in enumerate(pairs)}
        places = {
            path: {f: index[cls.name(path, f)] for f in _NDIM if cls.name(path, f) in index}
            for path, _ in banked(model)
        }
        return cls([leaf for _, leaf in pairs], treedef, places, *rest)

    @staticmethod
    def name(path: str, field: str) -> str:
        """The path of an array."""
        return f"{path}/{field}".lstrip("/")

    @property
    def snapshot(self) -> Snapshot:
        """The model and the names."""
        return Snapshot(jtu.tree_unflatten(self.treedef, self.leaves), self.slots)

    @property
    def capacity(self) -> int:
        """The number of slots, with slot 0."""
        return 1 + len(self.slots) + len(self.free)

    @property
    def forms(self) -> dict[str, "Form"]:
        """The fields and the rank that the slots of each layer have room for."""
        return {
            path: Form(type(slots), slots.lora_A.shape[-2], OPTIONAL & self.places[path].keys())
            for path, slots in banked(self.snapshot.model)
        }

    def arrays(self, path: str) -> dict[str, Array]:
        """The arrays of the slots of one layer, by field."""
        return {field: self.leaves[place] for field, place in self.places.get(path, {}).items()}

    def completed(self, values: Mapping[str, Values]) -> dict[str, Values]:
        """`values`, and numbers without effect for the layers and fields that they lack."""
        return {
            path: {f: values.get(path, {}).get(f, float(f == "gain")) for f in fields}
            for path, fields in self.places.items()
        }

    def at(self, slot: int, path: str, field: str) -> Array:
        """The array of one slot."""
        array = self.leaves[self.places[path][field]]
        return lax.index_in_dim(array, slot, array.ndim - _NDIM[field], keepdims=False)

    def written(self, slot: int, values: Mapping[str, Values], in_place: bool) -> "State":
        """The state with other values in one slot, in the fields that `values` hold.

        `in_place`: whether this state may become unusable.
        """
        where = [(self.places[path][field], field) for path in values for field in values[path]]
        old = [self.leaves[place] for place, _ in where]
        new = [values[path][field] for path in values for field in values[path]]
        axes = tuple(x.ndim - _NDIM[field] for x, (_, field) in zip(old, where, strict=True))
        new = [
            _filled_up(value, (*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype)
            for value, x, axis in zip(new, old, axes, strict=True)
        ]
        write = _write_in_place if in_place else _write
        made = sharded_like(write(old, new, np.int32(slot), axes), old)
        leaves = list(self.leaves)
        for (place, _), array in zip(where, made, strict=True):
            leaves[place] = array
        return self._replace(leaves=leaves)

    def grown(
        self,
        plain: PyTree,
        forms: Mapping[str, "Form"],
        free: tuple[int, ...],
        axis: str | None,
    ) -> "State":
        """The state with room for `forms`, at least as large as those of now, and `free` slots.

        `axis`: the mesh axis over which the slots are split, if any.
        """
        capacity = 1 + len(self.slots) + len(free)
        layers = layers_at(plain, forms)
        used = np.asarray([0, *self.slots.values()])
        made: dict[str, LooseAdapter] = {}
        for path, form in forms.items():
            layer, old = layers[path], self.arrays(path)
            ndim = form.cls.stack_ndim(layer)
            arrays = form.empty(layer, ndim, capacity)
            if not old:  # the adapters of now leave this layer as it is
                arrays["scale"] = arrays["scale"].at[..., used].set(0)
            for field, array in old.items():
                inside = tuple(slice(0, size) for size in array.shape)
                arrays[field] = arrays[field].at[inside].set(array)
            made[path] = LooseAdapter(arrays, form.cls, form.rank, 1.0, LayerForm.of(layer, ndim))
        grown = State.of(put_around(plain, AdapterSet(made)), self.slots, free)
        for fields in grown.places.values() if axis else ():
            for field, place in fields.items():
                grown.leaves[place] = _split(grown.leaves[place], _NDIM[field], axis)
        return grown


class Form(NamedTuple):
    """The fields and the rank that the slots of one layer have room for."""

    cls: type[Slots]
    rank: int
    fields: frozenset[str]

    def empty(self, layer: Any, ndim: int, capacity: int) -> dict[str, Array]:
        """The arrays of empty slots for `layer`, with `ndim` axes of a stack."""
        make: Any = self.cls
        options: Any = dict.fromkeys(self.fields, True)
        options |= {"key": jax.random.key(0), "slots": capacity}  # nothing is drawn

        def start(layer: Any) -> dict[str, Array]:
            return make(layer, self.rank, 1.0, **options).state()

        return over_stack(start, ndim)(layer)


def axis_size(model: PyTree, axis: str) -> int:
    """The size of an axis of the mesh that `model` lies on.

    **Raises:** `SelectionError` if there is no such axis.
    """
    homes = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(model))
    meshes = [home.mesh for home in homes if isinstance(home, NamedSharding)]
    for mesh in meshes:
        if axis in mesh.shape:
            return mesh.shape[axis]
    known = ", ".join(dict.fromkeys(name for mesh in meshes for name in mesh.shape)) or "none"
    raise SelectionError(f"`axis` is {axis!r}, but the mesh of the model has the axes: {known}.")


def _split(array: Array, ndim: int, axis: Any) -> Array:
    """`array` with its axis of slots split over a mesh axis, which no other axis uses then."""
    home = array.sharding
    if not isinstance(home, NamedSharding):
        return array
    spec: list[Any] = [*home.spec, *(None,) * (array.ndim - len(home.spec))]
    spec = [None if own == axis else own for own in spec]
    spec[-ndim] = axis
    return jax.device_put(array, NamedSharding(home.mesh, PartitionSpec(*spec)))


def banked(model: PyTree) -> Iterator[tuple[str, Slots]]:
    """The layers with slots, by path."""
    return (pair for pair in adapted_layers(model) if isinstance(pair[1], Slots))


def _filled_up(value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """`value` in this shape and dtype, with zeros behind it along each axis that is longer."""
    if isinstance(value, jax.Array) and value.shape == shape:
        return value.astype(dtype)
    value = np.asarray(value, dtype)
    if value.ndim < len(shape):
        return np.broadcast_to(value, shape)
    filled = np.zeros(shape, dtype)
    filled[tuple(slice(0, size) for size in value.shape)] = value
    return filled


def _written(old: list[Array], new: list[Any], slot: Any, axes: tuple[int, ...]) -> list[Array]:
    return [
        lax.dynamic_update_index_in_dim(array, value, slot, axis)
        for array, value, axis in zip(old, new, axes, strict=True)
    ]


_write = jax.jit(_written, static_argnums=3)
_write_in_place = jax.jit(_written, static_argnums=3, donate_argnums=0)

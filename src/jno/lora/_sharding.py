"""Where arrays lie: beside the arrays of their layer, on its device or its mesh."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._compute.precision import in_dtypes_of
from ._contract.wrapper import LoRAWrapper
from ._paths import KeyPath, path_str


def mesh_of(tree: PyTree) -> Any:
    """The mesh of the first array of `tree` that lies on a mesh."""
    shardings = map(_named_sharding, jax.tree.leaves(tree))
    return next((sharding.mesh for sharding in shardings if sharding is not None), None)


def on_mesh(array: Any, mesh: Mesh) -> Any:
    """`array` for a program on `mesh`. Arrays that lie on the mesh are not copied."""
    if not isinstance(array, jax.Array):
        return array
    if array.sharding.device_set != set(mesh.devices.flat):
        # For example, a key on one device. A process cannot use another process's devices.
        replicated = NamedSharding(_automatic(mesh), PartitionSpec())
        return jax.device_put(array, replicated) if replicated.is_fully_addressable else array
    sharding = _named_sharding(array)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    # On explicit axes, an adapter's arithmetic would have to name every sharding.
    mesh, kind = _automatic(sharding.mesh), sharding.memory_kind
    return jax.device_put(array, NamedSharding(mesh, sharding.spec, memory_kind=kind))


def mesh_context(mesh: Mesh) -> contextlib.AbstractContextManager[object]:
    """A context for calls on `mesh`: if `jax.set_mesh` has set explicit axes, they do not count."""
    is_explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return jax.set_mesh(_automatic(mesh)) if is_explicit else contextlib.nullcontext()


def on_one_device(arrays: list[Any], layer: PyTree) -> list[Any]:
    """`arrays`, on the device of `layer` if they lie on several (a key may lie elsewhere)."""
    if len({array.sharding for array in arrays if isinstance(array, jax.Array)}) <= 1:
        return arrays
    anchor = next((x for x in jax.tree.leaves(layer) if isinstance(x, jax.Array)), None)
    return arrays if anchor is None else [_beside(array, anchor) for array in arrays]


def device_context(arrays: list[Any]) -> contextlib.AbstractContextManager[object]:
    """A context in which arrays that depend on no argument, such as zeros, lie by `arrays`."""
    devices = (next(iter(x.sharding.device_set)) for x in arrays if isinstance(x, jax.Array))
    device = next(devices, None)
    return contextlib.nullcontext() if device is None else jax.default_device(device)


def place_like_base(wrapper: LoRAWrapper, layer: PyTree) -> LoRAWrapper:
    """`wrapper`, built around `layer`, with its arrays on the layer's mesh, if there is a mesh.

    Each field takes its spec in `wrapper.partition_specs()`; fields without a spec are replicated.
    An array of the base that the constructor changed keeps its former sharding and dtype: JAX
    computes a residual of NumPy's float64 in float32.
    """
    base: PyTree = wrapper.base
    if base is not layer and jtu.tree_structure(base) == jtu.tree_structure(layer):
        base = in_dtypes_of(layer, sharded_like(base, layer))
        wrapper = eqx.tree_at(lambda w: w.base, wrapper, base)
    mesh = mesh_of(layer)
    if mesh is None:
        return wrapper
    specs = wrapper.partition_specs()

    def place(path: KeyPath, leaf: object) -> PyTree:
        if not eqx.is_array(leaf) or isinstance(leaf, Tracer) or path[0].name == "base":
            return leaf
        spec = specs.get(path_str(path), specs.get(path[0].name, PartitionSpec()))
        return _put(leaf, NamedSharding(mesh, spec))

    return jtu.tree_map_with_path(place, wrapper)


def sharded_like(layer: PyTree, model: PyTree) -> PyTree:
    """`layer`, with the shardings of `model`, a layer of the same structure."""
    if mesh_of(model) is None:
        return layer

    # A compiler may place results elsewhere, for example if blocks do not divide an axis.
    def place(new: PyTree, old: PyTree) -> PyTree:
        sharding = _named_sharding(old)
        if sharding is None or new is old or isinstance(new, Tracer):
            return new
        return _put(new, sharding)

    return jax.tree.map(place, layer, model)


def replicated_beside(layer: PyTree, array: Any) -> Any:
    """`array`, replicated over the layer's mesh, if the layer lies on a mesh."""
    mesh = mesh_of(layer)
    return array if mesh is None else _put(array, NamedSharding(mesh, PartitionSpec()))


def _beside(leaf: object, anchor: jax.Array) -> PyTree:
    """`leaf` (such as a key), moved to `anchor` if no program can take both where they are."""
    is_elsewhere = isinstance(leaf, jax.Array) and leaf.devices() != anchor.devices()
    return jax.device_put(leaf, anchor.sharding) if is_elsewhere else leaf


def _automatic(mesh: Any) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _put(leaf: object, sharding: NamedSharding) -> PyTree:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or isinstance(leaf, Tracer) or is_global:
        return jax.device_put(leaf, sharding)
    # Every process has the same values, and cannot use the devices of other processes.
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _named_sharding(leaf: object) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None

"""Place adapters and merged layers on the mesh of a sharded layer."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ._compute import (
    Started,
    TracedError,
    call_compiled,
    in_dtypes_of,
    signature_of,
    start_compiled,
)
from ._contract import LoRAWrapper, over_stack
from ._paths import KeyPath, path_str

T = TypeVar("T")
# With more calls, the garbage collector would have to scan more objects.
_TOGETHER = 64


def on_the_mesh(
    layer: Any,
    function: Callable[..., T],
    *args: Any,
    settle: Callable[[T, Any], T] = lambda result, _: result,
) -> T:
    """`function(*args)` by a program (see `call_compiled`), on the mesh or device of `layer`.

    If the operations ran one by one, some intermediate results (an update made of replicated
    factors) would be replicated on every device, and processes would have to agree on arrays that
    each process made. The compiler splits a program over the mesh.

    - `layer`: an item of `args`, or a subtree of an item.
    - `settle`: `settle(result, layer)` puts the result's arrays in place if `layer` is sharded.
    """
    try:
        signed = signature_of(args)
    except TracedError:  # the compiler of the program around this call decides
        return function(*args)
    homes = _homes(signed.arrays)
    if len(homes) > 1 or any(isinstance(home, NamedSharding) for home in homes):
        mesh = _mesh(layer if len(homes) > 1 else args)
        if mesh is not None:
            return settle(_call_on_mesh(mesh, function, args), layer)
        anchor = next((x for x in jax.tree.leaves(layer) if isinstance(x, jax.Array)), None)
        if anchor is not None:
            args = jax.tree.map(lambda leaf: _beside(leaf, anchor), args)
            homes, signed = {anchor.sharding}, signature_of(args)
    call = function if _compiles_parts(args) else partial(call_compiled, function, signed=signed)
    if len(homes) != 1:
        return call(*args)
    # For arrays that depend on no argument, such as zeros.
    with jax.default_device(next(iter(homes.pop().device_set))):
        return call(*args)


def _compiles_parts(args: tuple[Any, ...]) -> bool:
    """Whether an adapter, or a class of adapters, in `args` compiles its parts itself."""
    items = (item for arg in args for item in (arg if type(arg) is tuple else (arg,)))
    # Of the class: an adapter would look in its layer, too, which is slow.
    classes = (item if isinstance(item, type) else type(item) for item in items)
    return any(getattr(cls, "compiles_parts", False) is True for cls in classes)


def start_together(
    function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Started | None]]:
    """Start `function(*args)` for each `args` of `calls`, some calls ahead of the caller.

    The programs start back to back, because XLA's threads spin between two programs, so that
    Python's work on a layer in between would cost more than the programs.

    **Yields:** `args`, and the call, which is `None` if it must go through `on_the_mesh`.
    """
    while batch := list(itertools.islice(calls, _TOGETHER)):
        yield from zip(batch, _start_on_one_device(function, batch), strict=True)


def _start_on_one_device(
    function: Callable[..., Any], calls: list[tuple[Any, ...]]
) -> list[Started | None]:
    try:
        signed = [signature_of(args) for args in calls]
    except TracedError:
        return [None] * len(calls)
    homes = _homes(array for _, arrays in signed for array in arrays)
    if len(homes) != 1 or any(isinstance(home, NamedSharding) for home in homes):
        return [None] * len(calls)
    with jax.default_device(next(iter(homes.pop().device_set))):
        return [
            None if _compiles_parts(args) else start_compiled(function, args, signature)
            for args, signature in zip(calls, signed, strict=True)
        ]


def _homes(arrays: Iterable[Any]) -> set[Any]:
    return {array.sharding for array in arrays if isinstance(array, jax.Array)}


def _call_on_mesh(mesh: Mesh, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    joined = jax.tree.map(lambda leaf: _on_automatic_axes(leaf, mesh), args)
    originals = dict(zip(map(id, jax.tree.leaves(joined)), jax.tree.leaves(args), strict=True))
    is_explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    # If `jax.set_mesh` has set a mesh with explicit axes, another mesh takes its place.
    with jax.set_mesh(_automatic(mesh)) if is_explicit else contextlib.nullcontext():
        result = call_compiled(function, *joined)
    return jax.tree.map(lambda x: originals.get(id(x), x), result)


def place_like_base(wrapper: LoRAWrapper, layer: Any) -> LoRAWrapper:
    """`wrapper`, built around `layer`, with its arrays on the layer's mesh, if there is a mesh.

    Each field takes its spec in `wrapper.partition_specs()`; fields without a spec are replicated.
    An array of the base that the constructor changed keeps its former sharding.
    """
    mesh = _mesh(layer)
    if mesh is None:
        return wrapper
    specs = wrapper.partition_specs()

    def place(path: KeyPath, leaf: Any) -> Any:
        if not eqx.is_array(leaf) or path[0].name == "base":
            return leaf
        spec = specs.get(path_str(path), specs.get(path[0].name, PartitionSpec()))
        return _put(leaf, NamedSharding(mesh, spec))

    placed = jtu.tree_map_with_path(place, wrapper)
    return eqx.tree_at(lambda w: w.base, placed, sharded_like(wrapper.base, layer))


def with_dtypes_of_base(wrapper: LoRAWrapper, layer: Any) -> LoRAWrapper:
    """`wrapper`, built around `layer`, with a base whose dtypes are the layer's.

    JAX computes a residual of NumPy's float64 in float32, but a merged layer keeps its dtype.
    """
    base = wrapper.base
    if base is layer or jtu.tree_structure(base) != jtu.tree_structure(layer):
        return wrapper
    cast = in_dtypes_of(layer, base)
    return wrapper if cast is base else eqx.tree_at(lambda w: w.base, wrapper, cast)


def sharded_like(layer: Any, model: Any) -> Any:
    """`layer`, with the shardings of `model`, a layer of the same structure."""

    # A compiler may place results elsewhere, for example if blocks do not divide an axis.
    def place(new: Any, old: Any) -> Any:
        sharding = _named_sharding(old)
        if sharding is None or new is old or isinstance(new, Tracer):
            return new
        return _put(new, sharding)

    return jax.tree.map(place, layer, model)


def replicated_beside(layer: Any, array: Any) -> Any:
    """`array`, replicated over the layer's mesh, if the layer lies on a mesh."""
    mesh = _mesh(layer)
    return array if mesh is None else _put(array, NamedSharding(mesh, PartitionSpec()))


def restored_layer(
    cls: type[LoRAWrapper], base: Any, state: Mapping[str, Any], rank: Any, alpha: Any
) -> LoRAWrapper:
    """`cls.from_state(...)`, mapped over a stack's axes, on the mesh or device of `base`."""
    args = cls, rank, alpha, base, dict(state)
    restored = on_the_mesh(base, _restore, *args, settle=place_like_base)
    return with_dtypes_of_base(restored, base)


def _restore(cls: Any, rank: Any, alpha: Any, base: Any, state: Any) -> Any:
    ndim = cls.stack_ndim(base)
    return over_stack(lambda *slices: cls.from_state(*slices, rank, alpha), ndim)(base, state)


def _beside(leaf: Any, anchor: jax.Array) -> Any:
    """`leaf` (such as a key), moved to `anchor` if no program can take both where they are."""
    is_elsewhere = isinstance(leaf, jax.Array) and leaf.devices() != anchor.devices()
    return jax.device_put(leaf, anchor.sharding) if is_elsewhere else leaf


def _on_automatic_axes(leaf: Any, mesh: Mesh) -> Any:
    """Prepare `leaf` for a program on `mesh`. Arrays that lie on the mesh are not copied."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if leaf.sharding.device_set != set(mesh.devices.flat):
        # For example, a key on one device. A process cannot use another process's devices.
        replicated = NamedSharding(_automatic(mesh), PartitionSpec())
        return jax.device_put(leaf, replicated) if replicated.is_fully_addressable else leaf
    sharding = _named_sharding(leaf)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return leaf
    # On explicit axes, an adapter's arithmetic would have to name every sharding.
    mesh, kind = _automatic(sharding.mesh), sharding.memory_kind
    return jax.device_put(leaf, NamedSharding(mesh, sharding.spec, memory_kind=kind))


def _automatic(mesh: Any) -> Mesh:
    axis_types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or isinstance(leaf, Tracer) or is_global:
        return jax.device_put(leaf, sharding)
    # Every process has the same values, and cannot use the devices of other processes.
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _mesh(tree: Any) -> Any:
    shardings = map(_named_sharding, jax.tree.leaves(tree))
    return next((sharding.mesh for sharding in shardings if sharding is not None), None)


def _named_sharding(leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None

"""Placing adapters on the mesh of a sharded layer, and merged layers where the layer was."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from ._contract import LoRAWrapper
from ._paths import KeyPath, path_str


def place_like_base(wrapper: LoRAWrapper, layer: Any) -> LoRAWrapper:
    """`wrapper`, built around `layer`, with its arrays on the layer's mesh.

    Each field takes the spec that `wrapper.partition_specs()` names, and is replicated without
    one; an array of the base that the constructor changed takes the sharding it had. A layer
    that is not sharded (or is traced) leaves everything as it is.
    """
    shardings = [_named_sharding(leaf) for leaf in jax.tree.leaves(layer)]
    mesh = next((s.mesh for s in shardings if s is not None), None)
    if mesh is None:
        return wrapper
    specs = wrapper.partition_specs()

    def place(path: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or path[0].name == "base":
            return leaf
        spec = specs.get(path_str(path), specs.get(path[0].name, PartitionSpec()))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    placed = jtu.tree_map_with_path(place, wrapper)
    return eqx.tree_at(lambda w: w.base, placed, sharded_like(wrapper.base, layer))


def sharded_like(layer: Any, model: Any) -> Any:
    """`layer`, with the shardings of `model`, a layer of the same structure.

    What a compiler made of the arithmetic may lie elsewhere (blocks that do not divide an axis).
    """

    def place(new: Any, old: Any) -> Any:
        sharding = _named_sharding(old)
        if sharding is None or new is old or isinstance(new, Tracer):
            return new
        return jax.device_put(new, sharding)

    return jax.tree.map(place, layer, model)


def _named_sharding(leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None

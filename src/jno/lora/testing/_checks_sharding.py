"""The check of an adapter around a layer that lies on a mesh of devices."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._merge import merge_lora
from ._case import WrapperCase, apply, perturbed, run_jitted
from ._conformance import advice, require, require_close


@advice
def check_sharding(case: WrapperCase) -> str | None:
    """A layer sharded over devices is adapted, run and merged on its mesh.

    With one device only (see `--xla_force_host_platform_device_count`) there is little to see.
    """
    plain = case.make_base()
    layer, shardings = _shard(plain)
    if not shardings:
        return "the layer has no array that could be cut"
    adapted, alone = (perturbed(apply(case, base)) for base in (layer, plain))
    devices = shardings[0].device_set
    require(
        all(x.sharding.device_set == devices for x in _arrays(adapted) if isinstance(x, jax.Array)),
        "Some arrays of the adapter are not on the mesh of the layer it wraps.",
        "name the sharding of fields in `partition_specs`, and do not place arrays by yourself.",
    )
    inputs = jax.device_put(case.make_inputs(), NamedSharding(shardings[0].mesh, PartitionSpec()))
    require_close(
        run_jitted(case, adapted, inputs),
        case.run(alone),
        2e-4,
        "Sharded and on one device, the outputs differ",
        "let shapes, not devices, decide what is computed.",
    )
    if case.mergeable:
        merged = zip(_arrays(merge_lora(adapted)), shardings, strict=True)
        require(
            all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf, sharding in merged),
            "The merged layer is sharded in another way than the layer was.",
            "merge into arrays of the base's own shapes; `merge_lora` then places them as it was.",
        )
    return None


def _shard(layer: Any) -> tuple[Any, list[NamedSharding]]:
    """The layer with each array split along an axis that the devices divide, and how."""
    sizes = {size for leaf in _arrays(layer) for size in leaf.shape}
    counts = [n for n in range(len(jax.devices()), 0, -1) if any(s % n == 0 for s in sizes)]
    if not counts:
        return layer, []
    mesh = Mesh(np.array(jax.devices()[: counts[0]]), ("devices",))
    shardings: list[NamedSharding] = []

    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        divisible = [size % counts[0] == 0 for size in leaf.shape]
        axis = divisible.index(True) if any(divisible) else None
        axes = ["devices" if i == axis else None for i in range(leaf.ndim)]
        shardings.append(NamedSharding(mesh, PartitionSpec(*axes)))
        return jax.device_put(leaf, shardings[-1])

    return jax.tree.map(place, layer), shardings


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]

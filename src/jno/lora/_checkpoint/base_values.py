"""Hashes of layers' values, which show whether adapters are loaded onto their own base."""

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._compute.precision import held_dtype
from .._contract.coded import is_coded
from .._contract.wrapper import LoRAWrapper, is_adapter, overrides
from .._paths import path_str
from .._sets.set import LayerForm, arrays_of
from .._tree import layers_at
from .format import Entry

# The fastest algorithm of `hashlib` that is not broken: `python -m benchmarks.base_values`.
_ALGORITHM = "sha256"

# By the identity of an array, so that a model is hashed once, however often it is saved.
_digests: dict[int, tuple[weakref.ref[Any], str]] = {}


def known_layers(
    model: PyTree, paths: Iterable[str], originals: Mapping[str, eqx.Module] | None = None
) -> dict[str, eqx.Module]:
    """The plain layers at these paths that are known bit for bit.

    An adapter that defines `unwrap` (PiSSA) changed its base; `originals` may have its layer.
    """
    layers: dict[str, eqx.Module] = {}
    for path, node in layers_at(model, paths).items():
        if not is_adapter(node):
            layers[path] = node
        elif originals and path in originals:
            layers[path] = originals[path]
        elif not overrides(type(node), LoRAWrapper, "unwrap"):
            layers[path] = node.base
    return layers


def hashes(layers: Mapping[str, eqx.Module], forms: Mapping[str, LayerForm]) -> dict[str, str]:
    """By path, a hash of each layer that has exactly its form in `forms`.

    Leaves out layers in another precision, and layers without values (traced, deleted, shapes).
    """
    by_path: dict[str, str] = {}
    for path, form in forms.items():
        layer = layers.get(path)
        if layer is None or sorted(LayerForm.of(layer, 0).arrays) != sorted(form.arrays):
            continue
        arrays = sorted(arrays_of(layer), key=lambda pair: pair[0])
        leaves = [leaf for name, array in arrays for leaf in _stored_arrays(name, array)]
        if not all(_has_values(leaf) for _, leaf in leaves):
            continue
        digest = hashlib.new(_ALGORITHM)
        for name, leaf in leaves:
            line = [name, str(held_dtype(leaf)), list(leaf.shape), _digest(leaf)]
            digest.update(json.dumps(line).encode())
        codes = [array.code for _, array in arrays if is_coded(array)]
        by_path[path] = f"{'_'.join([_ALGORITHM, *codes])}:{digest.hexdigest()}"
    return by_path


def same_values(entries: Mapping[str, Entry], layers: Mapping[str, eqx.Module]) -> dict[str, bool]:
    """By path, whether the hash of a layer is the hash in its entry.

    Leaves out layers without comparable hashes. (Hashes of codes do not identify the weight.)
    """
    saved = {path: entry.base_values or "" for path, entry in entries.items()}
    forms = {p: e.layer.form for p, e in entries.items() if saved[p].startswith(_ALGORITHM)}
    return {
        path: value == saved[path]
        for path, value in hashes(layers, forms).items()
        if value.partition(":")[0] == saved[path].partition(":")[0]
    }


def _stored_arrays(path: str, array: Any) -> list[tuple[str, Any]]:
    if not is_coded(array):
        return [(path, array)]
    leaves = jax.tree_util.tree_leaves_with_path(array)
    return [(f"{path}/{path_str(keys)}", leaf) for keys, leaf in leaves]


def _has_values(array: Any) -> bool:
    is_jax = isinstance(array, jax.Array) and not isinstance(array, Tracer)
    return isinstance(array, np.ndarray) or (is_jax and not array.is_deleted())


def _digest(array: Any) -> str:
    # Not cached for NumPy's arrays, which can change, nor for arrays of several processes, because
    # all processes must take part in gathering.
    if isinstance(array, np.ndarray) or not array.is_fully_addressable:
        return _computed_digest(array)
    identity = id(array)
    reference, digest = _digests.get(identity, (None, ""))
    if reference is None or reference() is not array:
        digest = _computed_digest(array)
        reference = weakref.ref(array, lambda _, cache=_digests: cache.pop(identity, None))
        _digests[identity] = reference, digest
    return digest


def _computed_digest(array: Any) -> str:
    if isinstance(array, np.ndarray):
        array = array.astype(held_dtype(array), copy=False)
    elif jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.ascontiguousarray(array if isinstance(array, np.ndarray) else on_the_host(array))
    return hashlib.new(_ALGORITHM, values.reshape(-1).view(np.uint8).data).hexdigest()


def on_the_host(array: jax.Array) -> np.ndarray:
    """The values of an array, which may lie on the devices of several processes."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    # JAX caches the gathered values on the array, which would be a second copy of the model. So a
    # temporary array of the same buffers is gathered.
    shards = [shard.data for shard in array.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards))

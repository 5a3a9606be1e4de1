"""Hashes of the values of layers: a file knows by them which base its adapters were made for."""

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._compute import held_dtype
from .._contract import LoRAWrapper, is_adapter, is_coded
from .._paths import path_str
from .._sets import LayerForm, arrays_of
from .._tree import layers_at
from ._configuration import Entry

# The fastest of Python's that is not broken, see `python -m benchmarks.base_values`.
_ALGORITHM = "sha256"

# The digests of arrays by identity, so that a model is hashed once, however often it is saved.
_known: dict[int, tuple[weakref.ref[Any], str]] = {}


def known_layers(
    model: PyTree, paths: Iterable[str], originals: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The plain layers at these paths, as far as they are known bit for bit.

    The base of an adapter with an `unwrap` of its own (PiSSA) is not the layer that was adapted.

    - `originals`: layers that were adapted, by path.
    """
    found: dict[str, Any] = {}
    for path, node in layers_at(model, paths).items():
        if not is_adapter(node):
            found[path] = node
        elif originals and path in originals:
            found[path] = originals[path]
        elif type(node).unwrap is LoRAWrapper.unwrap:
            found[path] = node.base
    return found


def hashes(layers: Mapping[str, Any], forms: Mapping[str, LayerForm]) -> dict[str, str]:
    """By path, a hash of the layers that have exactly these forms.

    Left out are layers in another precision, and those without values (traced, deleted, shapes).
    """
    found: dict[str, str] = {}
    for path, form in forms.items():
        layer = layers.get(path)
        if layer is not None and sorted(LayerForm.of(layer, 0).arrays) == sorted(form.arrays):
            known = sorted(arrays_of(layer), key=lambda pair: pair[0])
            arrays = [stored for pair in known for stored in _stored(*pair)]
            if all(_has_values(array) for _, array in arrays):
                codes = [array.code for _, array in known if is_coded(array)]
                found[path] = f"{'_'.join([_ALGORITHM, *codes])}:{_hash(arrays)}"
    return found


def same_values(entries: Iterable[Entry], layers: Mapping[str, Any]) -> dict[str, bool]:
    """By path, whether a layer has the values that its entry has a hash of.

    Left out are layers that cannot be compared: entries without a hash, or with one of another
    kind (hashes of codes say nothing of the weight), and the layers that `hashes` leaves out.
    """
    saved = {e.path: e.base_values for e in entries if (e.base_values or "").startswith(_ALGORITHM)}
    found = hashes(layers, {e.path: e.layer for e in entries if e.path in saved})
    return {
        path: own == saved[path] for path, own in found.items() if _kind(own) == _kind(saved[path])
    }


def _kind(found: str | None) -> str:
    return (found or "").partition(":")[0]


def _stored(path: str, array: Any) -> list[tuple[str, Any]]:
    """The arrays that `array` is kept as, with their paths."""
    if not is_coded(array):
        return [(path, array)]
    leaves = jax.tree_util.tree_leaves_with_path(array)
    return [(f"{path}/{path_str(keys)}", leaf) for keys, leaf in leaves]


def _hash(arrays: Iterable[tuple[str, Any]]) -> str:
    """The digest of the path, dtype, shape and values of each array."""
    whole = hashlib.new(_ALGORITHM)
    for path, array in arrays:
        line = [path, str(held_dtype(array)), list(array.shape), _digest(array)]
        whole.update(json.dumps(line).encode())
    return whole.hexdigest()


def _has_values(array: Any) -> bool:
    is_jax = isinstance(array, jax.Array) and not isinstance(array, Tracer)
    return isinstance(array, np.ndarray) or (is_jax and not array.is_deleted())


def _digest(array: Any) -> str:
    """The digest of the values of one array.

    In several processes, all take part in gathering an array, so none may remember it.
    """
    if isinstance(array, np.ndarray) or not array.is_fully_addressable:
        return _digest_anew(array)
    place = id(array)
    reference, digest = _known.get(place, (None, ""))
    if reference is None or reference() is not array:
        digest = _digest_anew(array)
        reference = weakref.ref(array, lambda _, known=_known: known.pop(place, None))
        _known[place] = reference, digest
    return digest


def _digest_anew(array: Any) -> str:
    values = np.ascontiguousarray(_on_the_host(array))
    return hashlib.new(_ALGORITHM, values.reshape(-1).view(np.uint8).data).hexdigest()


def _on_the_host(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array.astype(held_dtype(array), copy=False)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    # Another array of the same buffers: JAX keeps what it gathers with the array that it was asked
    # for, which would be a second copy of the model.
    parts = [shard.data for shard in array.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts))

"""Arrays of a model that a PEFT file replaces: trained biases, and whole modules."""

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._contract import is_wrapper
from .._paths import KeyPath, path_str, show_array, show_path
from .._sets import refuse_second
from .._sharding import sharded_like
from ._layouts import is_transposed

M = TypeVar("M")
Index = tuple[int, ...]


class Arrays:
    """New arrays for a model, by path, in the dtypes of those they replace."""

    def __init__(self):
        self._new: dict[str, Any] = {}

    def put_into(self, model: M) -> M:
        """`model` with these arrays.

        **Raises:** `SelectionError` if two of its leaves have the path of one of them.
        """
        found: set[str] = set()

        def replace(keys: KeyPath, leaf: Any) -> Any:
            path = path_str(keys)
            if path not in self._new:
                return leaf
            refuse_second(path, found, "arrays")
            found.add(path)
            return self._new[path]

        return jtu.tree_map_with_path(replace, model)

    def replace(
        self, path: str, layer: Any, index: Index, tensors: Mapping[str, np.ndarray]
    ) -> list[str]:
        """Replace arrays of the layer at `path`, or of one layer of a stack.

        **Returns:** what keeps them from being replaced.
        """
        if is_wrapper(layer):
            return [
                f"{show_path(path)}: the file replaces arrays of this layer, which carries a "
                f"{type(layer).__name__}. Call merge_lora or unwrap_lora first"
            ]
        problems: list[str] = []
        for name, tensor in tensors.items():
            key = f"{path}/{name}" if path else name
            old = self._new.get(key, _own_array(layer, name))
            if old is None:
                problems.append(f"{key}: the {type(layer).__name__} has no such array")
            elif name == "weight" and is_transposed(layer):
                problems.append(
                    f"{key}: Torch lays out the kernel of a transposed convolution otherwise, with "
                    "the inputs first and each axis reversed. Convert and set it by hand"
                )
            elif not (_fits(name, tensor.shape, old.shape, index) and _kind(tensor) == _kind(old)):
                which = f", of which [{show_index(index)}] is meant" if index else ""
                problems.append(
                    f"{key}: the model has {show_array(old)}{which}, the file has "
                    f"{show_array(tensor)}"
                )
            else:
                new = jnp.asarray(tensor.reshape(old.shape[len(index) :])).astype(old.dtype)
                if index:
                    new = jnp.asarray(old).at[index].set(new)
                self._new[key] = sharded_like(new, old)
        return problems

    def change_bias(self, path: str, layer: Any, changes: Mapping[str, np.ndarray]) -> list[str]:
        """Multiply the bias of the layer at `path` by `"factor"`, or add `"shift"` to it.

        **Returns:** what keeps it from being changed.
        """
        key = f"{path}/bias" if path else "bias"
        old = self._new.get(key, _own_array(layer, "bias"))
        if old is None and eqx.is_array(getattr(layer, "bias", None)):
            return [
                f"{key}: the {type(layer).__name__} computes it, and has no such array to change"
            ]
        if old is None:
            return [
                f"{show_path(path)}: lora_bias adds to what the layer returns, and the "
                f"{type(layer).__name__} has no bias to hold it"
                for kind, change in changes.items()
                if kind == "shift" and change.any()
            ]
        for kind, change in changes.items():
            if not _fits("bias", change.shape, old.shape, ()):
                return [
                    f"{key}: the model has {show_array(old)}, the file has {show_array(change)}"
                ]
            wide = jnp.asarray(old, jnp.promote_types(old.dtype, jnp.float32))
            change = jnp.asarray(change.reshape(old.shape)).astype(wide.dtype)
            new = wide * change if kind == "factor" else wide + change
            self._new[key] = sharded_like(new.astype(old.dtype), old)
        return []


def _own_array(layer: Any, name: str) -> Any:
    """The array of that name that `layer` holds: what a property computes has no place."""
    leaves = {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(layer)}
    found = leaves.get(name)
    return found if isinstance(found, jax.Array | np.ndarray) else None


def show_index(index: Index) -> str:
    """An index in a stack as it is written."""
    return ",".join(map(str, index))


def _fits(name: str, new: Index, old: Index, index: Index) -> bool:
    """Whether an array of the one shape may stand for (a slice of) one of the other."""
    if len(index) > len(old) or any(i >= n for i, n in zip(index, old, strict=False)):
        return False
    own = old[len(index) :]
    # The bias of a convolution has axes of length 1 here, behind that of the channels.
    return new == own or (name == "bias" and own == (*new, *(1 for _ in own[1:])))


def _kind(array: Any) -> type:
    """Of the numbers: a cast within one kind rounds, one between two loses what was meant."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(array.dtype, kind)), np.generic)

"""New arrays for a model: trained biases, rows of embeddings, and whole modules.

The arrays are known by identity, so that `save_peft` writes them again: a model cannot tell which
of its arrays are pretrained. Training a loaded array makes a new array, which is not known.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import path_str, sharded_like, show_array, show_path

from .._errors import MisfitError
from .._names import show_index
from .layouts import TRANSPOSED, Shape, is_transposed

M = TypeVar("M")


class Source(NamedTuple):
    """The tensors and settings that a file of this type had in place of the array."""

    type: str
    tensors: Mapping[str, Any]
    settings: Mapping[str, Any]


_by_id: dict[int, tuple["weakref.ref[jax.Array]", Source | None]] = {}


class NewArrays:
    """New arrays for a model, by path, in the dtypes of the arrays that they replace."""

    def __init__(self):
        self._new: dict[str, Any] = {}
        self._old: dict[str, Any] = {}

    def put_into(self, model: M, *, everywhere: bool = False) -> M:
        """`model` with these arrays, `everywhere` also at further paths of a replaced array."""
        replaced: set[str] = set()
        by_id = {id(old): self._new[key] for key, old in self._old.items()} if everywhere else {}

        def replace(keys: tuple[Any, ...], leaf: Any) -> Any:
            path = path_str(keys)
            if path not in self._new:
                return by_id.get(id(leaf), leaf)
            if path in replaced:
                raise SelectionError(f"Two arrays have the path {path!r}. Rename a dict key in it.")
            replaced.add(path)
            return self._new[path]

        return jtu.tree_map_with_path(replace, model)

    def replace(
        self, path: str, layer: Any, index: Shape, tensors: Mapping[str, np.ndarray]
    ) -> list[str]:
        """Replace arrays of a layer, or of one layer of a stack; a line for each misfit."""
        if isinstance(layer, LoRAWrapper):
            return [
                f"{show_path(path)}: the file replaces arrays of this layer, which carries a "
                f"{type(layer).__name__}. Call merge_lora or unwrap_lora first"
            ]
        problems: list[str] = []
        for name, tensor in tensors.items():
            key, old = self._present(path, layer, name)
            if old is None:
                problems.append(f"{key}: the {type(layer).__name__} has no such array")
            elif name == "weight" and is_transposed(layer):
                problems.append(f"{key}: {TRANSPOSED}")
            elif not (_fits(name, tensor.shape, old.shape, index) and _kind(tensor) == _kind(old)):
                which = f" for the whole stack, here for [{show_index(index)}]" if index else ""
                problems.append(_differ(key, old, tensor, which))
            else:
                new = jnp.asarray(tensor.reshape(old.shape[len(index) :])).astype(old.dtype)
                # The same numbers leave the array shared with whatever else holds it.
                if not jnp.array_equal(new, old[index]):
                    self._put(key, layer, name, index, new)
        return problems

    def replace_rows(
        self, path: str, layer: Any, index: Shape, rows: list[int] | None, tensor: np.ndarray
    ) -> list[str]:
        """Replace rows of the weight of a layer, or of one layer of a stack; a line if unfit."""
        key, old = self._present(path, layer, "weight")
        if isinstance(layer, LoRAWrapper) or old is None or rows is None or is_transposed(layer):
            return [f"{key}: it is not the weight of a plain layer whose rows the settings name"]
        shape = old.shape[len(index) :]
        fits = all(i < n for i, n in zip(index, old.shape, strict=False)) and shape[1:] != ()
        if not fits or tensor.shape != (len(rows), *shape[1:]):
            return [_differ(key, old, tensor, f", where rows {rows} are meant")]
        if not all(0 <= row < shape[0] for row in rows) or len({*rows}) < len(rows):
            return [f"{key}: the rows {rows} are not different rows of its {shape[0]}"]
        table = np.array(old[index])
        table[rows] = tensor
        saved, settings = {"trainable_tokens_delta": tensor}, {"token_indices": rows}
        source = Source("TRAINABLE_TOKENS", saved, settings)
        self._put(key, layer, "weight", index, table, None if index else source)
        return []

    def shift_bias(
        self, path: str, layer: Any, index: Shape, shift: np.ndarray, source: Source | None = None
    ) -> None:
        """Add `shift` to a layer's bias. **Raises:** `MisfitError` if it has no such array."""
        (key, old), kind = self._present(path, layer, "bias"), type(layer).__name__
        if old is None and eqx.is_array(getattr(layer, "bias", None)):
            raise MisfitError(f"{key}: the {kind} computes it, and has no such array to change")
        if old is not None and not _fits("bias", shift.shape, old.shape, index):
            raise MisfitError(_differ(key, old, shift))
        if old is not None:
            wide = np.asarray(old[index], np.promote_types(old.dtype, np.float32))
            shifted = wide + shift.reshape(wide.shape).astype(wide.dtype)
            self._put(key, layer, "bias", index, shifted, source)
        elif shift.any():
            raise MisfitError(f"the file adds to its bias, and the {kind} has none")

    def _put(
        self,
        key: str,
        layer: Any,
        name: str,
        index: Shape,
        values: Any,
        source: Source | None = None,
    ) -> None:
        old = vars(layer)[name]
        current = self._new.get(key, old)
        new = jnp.asarray(values.reshape(old.shape[len(index) :])).astype(old.dtype)
        if index:
            new = jnp.asarray(current).at[index].set(new)
        new = sharded_like(new, old)
        self._new[key], self._old[key] = new, old
        identity = id(new)
        _by_id[identity] = weakref.ref(new, lambda _: _by_id.pop(identity, None)), source

    def _present(self, path: str, layer: Any, name: str) -> tuple[str, Any]:
        """The path of an array of `layer`, and the array. A property is not an array to replace."""
        key = f"{path}/{name}" if path else name
        value = vars(layer).get(name)
        return key, self._new.get(key, value if isinstance(value, jax.Array | np.ndarray) else None)


def _differ(key: str, old: Any, new: np.ndarray, which: str = "") -> str:
    return f"{key}: the model has {show_array(old)}{which}, the file has {show_array(new)}"


def _fits(name: str, new: Shape, old: Shape, index: Shape) -> bool:
    """Whether an array of shape `new` may replace an array of shape `old`, or its slice."""
    if len(index) > len(old) or any(i >= n for i, n in zip(index, old, strict=False)):
        return False
    shape = old[len(index) :]
    # The bias of a convolution has axes of length 1 here, behind the axis of the channels.
    return new == shape or (name == "bias" and shape == (*new, *(1 for _ in shape[1:])))


def _kind(array: Any) -> type:
    """The kind of the numbers. A cast within one kind only rounds."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(array.dtype, kind)), np.generic)


def is_loaded(array: object) -> bool:
    """Whether `load_peft` read this array."""
    reference, _ = _by_id.get(id(array), (None, None))
    return reference is not None and reference() is array


def source_of(array: object) -> Source | None:
    """The source of this array; `None` if the file had the array, or if it was not loaded."""
    return _by_id[id(array)][1] if is_loaded(array) else None

"""New arrays for a model: trained biases, rows of embeddings, and whole modules.

Loaded arrays are recorded by identity so that `save_peft` writes them again, because a model does
not record which arrays are pretrained. Training a loaded array makes a new array, which is not
recorded.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper
from jno.lora.extending import modules_by_path, path_str, sharded_like, show_array, show_path

from .errors import MisfitError, Problems
from .layouts import TRANSPOSED, Shape, is_transposed
from .names import show_index

M = TypeVar("M")
Array = jax.Array | np.ndarray

# A layer's path, and its index in a stack, which is `()` for a single layer.
Place = tuple[str, Shape]


class Source(NamedTuple):
    """The settings and tensors of a file that had no such array, but its change."""

    settings: Mapping[str, object]
    tensors: Mapping[str, np.ndarray]


_by_id: dict[int, tuple["weakref.ref[jax.Array]", Source | None]] = {}


class NewArrays:
    """New arrays for layers of a model, in the dtypes of the arrays that they replace.

    Arrays that do not fit get a line in `problems`.
    """

    def __init__(self, model: PyTree, problems: Problems):
        self._layers = modules_by_path(model)
        self._problems = problems
        self._new: dict[str, jax.Array] = {}
        self._old: dict[str, Array] = {}

    def put_into(self, model: M, *, everywhere: bool = False) -> M:
        """`model` with these arrays; with `everywhere`, also at other paths of a replaced array."""
        by_id = {id(old): self._new[key] for key, old in self._old.items()} if everywhere else {}

        def replace(keys: tuple[Any, ...], leaf: Any) -> Any:
            return self._new.get(path_str(keys), by_id.get(id(leaf), leaf))

        return jtu.tree_map_with_path(replace, model)

    def replace(self, place: Place, tensors: Mapping[str, np.ndarray]) -> None:
        """Replace arrays of a layer, or of one layer of a stack."""
        path, index = place
        layer = self._layers[path]
        kind = type(layer).__name__
        if isinstance(layer, LoRAWrapper):
            self._problems.append(
                f"{show_path(path)}: the file replaces arrays of this layer, which carries a {kind}"
            )
            return
        for name, tensor in tensors.items():
            key, old = self._present(path, name)
            if old is None:
                self._problems.append(f"{key}: the {kind} has no such array")
            elif name == "weight" and is_transposed(layer):
                self._problems.append(f"{key}: {TRANSPOSED}")
            elif not (_fits(name, tensor.shape, old.shape, index) and _kind(tensor) == _kind(old)):
                which = f" for the whole stack, here for [{show_index(index)}]" if index else ""
                self._problems.append(_differ(key, old, tensor, which))
            else:
                new = jnp.asarray(tensor.reshape(old.shape[len(index) :])).astype(old.dtype)
                # If the numbers are equal, the array stays, and stays shared.
                if not jnp.array_equal(new, old[index]):
                    self._put(place, name, new)

    def replace_rows(self, place: Place, rows: list[int] | None, tensor: np.ndarray) -> None:
        """Replace rows of the weight of a layer, or of one layer of a stack."""
        path, index = place
        key, old = self._present(path, "weight")
        *stack, count, size = (0, 0) if old is None or old.ndim < 2 else old.shape
        present = {*(rows or ())} & {*range(count)}
        if old is None or tensor.shape != (len(present), size) or index not in np.ndindex(*stack):
            self._problems.append(
                f"{key}: the file has new rows {show_array(tensor)} for the rows {rows}, which "
                f"must be different rows of the {count} of a plain layer"
            )
            return
        table = np.array(old[index])
        table[rows] = tensor
        settings = {"peft_type": "TRAINABLE_TOKENS", "token_indices": rows}
        source = Source(settings, {"trainable_tokens_delta": tensor})
        self._put(place, "weight", table, None if index else source)

    def shift_bias(self, place: Place, shift: np.ndarray, source: Source | None = None) -> None:
        """Add `shift` to a layer's bias. **Raises:** `MisfitError` without such a bias."""
        path, index = place
        (key, old), kind = self._present(path, "bias"), type(self._layers[path]).__name__
        if old is None:
            if shift.any():
                raise MisfitError(f"the file adds to its bias, and the {kind} holds no such array")
            return
        if not _fits("bias", shift.shape, old.shape, index):
            raise MisfitError(_differ(key, old, shift))
        wide = np.asarray(old[index], np.promote_types(old.dtype, np.float32))
        self._put(place, "bias", wide + shift.reshape(wide.shape).astype(wide.dtype), source)

    def _put(self, place: Place, name: str, values: Array, source: Source | None = None) -> None:
        path, index = place
        key, current = self._present(path, name)
        old = vars(self._layers[path])[name]
        new = jnp.asarray(values.reshape(old.shape[len(index) :])).astype(old.dtype)
        if index:
            new = jnp.asarray(current).at[index].set(new)
        new = sharded_like(new, old)
        self._new[key], self._old[key] = new, old
        identity = id(new)
        _by_id[identity] = weakref.ref(new, lambda _: _by_id.pop(identity, None)), source

    def _present(self, path: str, name: str) -> tuple[str, Array | None]:
        """The path of a layer's array, and the array. A property cannot be replaced."""
        key = f"{path}/{name}" if path else name
        value = vars(self._layers[path]).get(name)
        return key, self._new.get(key, value if isinstance(value, jax.Array | np.ndarray) else None)


def _differ(key: str, old: Array, new: np.ndarray, which: str = "") -> str:
    return f"{key}: the model has {show_array(old)}{which}, the file has {show_array(new)}"


def _fits(name: str, new: Shape, old: Shape, index: Shape) -> bool:
    """Whether an array of shape `new` may replace an array of shape `old`, or its slice."""
    if index not in np.ndindex(*old[: len(index)]):
        return False
    shape = old[len(index) :]
    # The bias of an Equinox convolution has axes of length 1 after the channel axis.
    return new == shape or (name == "bias" and shape == (*new, *(1 for _ in shape[1:])))


def _kind(array: Array) -> type:
    """The kind of the numbers. A cast within a kind only rounds."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(array.dtype, kind)), np.generic)


def is_loaded(array: object) -> bool:
    """Whether `load_peft` read this array."""
    reference, _ = _by_id.get(id(array), (None, None))
    return reference is not None and reference() is array


def source_of(array: object) -> Source | None:
    """The source of this array; `None` if the file had the array itself, or it was not loaded."""
    return _by_id[id(array)][1] if is_loaded(array) else None

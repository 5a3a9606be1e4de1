"""The arrays that `load_peft` read from files, by identity, so that `save_peft` writes them again.

A model cannot tell which of its arrays are pretrained. Training a loaded array makes a new array,
which is not found here.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class Source(NamedTuple):
    """The tensors and settings that a file of this type had in place of the array."""

    type: str
    tensors: Mapping[str, Any]
    settings: Mapping[str, Any]


_by_id: dict[int, tuple["weakref.ref[jax.Array]", Source | None]] = {}


def remember(array: jax.Array, source: Source | None = None) -> None:
    """Note that a file holds this array, or the source from which the array was computed."""
    key = id(array)
    _by_id[key] = weakref.ref(array, lambda _: _by_id.pop(key, None)), source


def is_loaded(array: object) -> bool:
    """Whether `load_peft` read this array."""
    reference, _ = _by_id.get(id(array), (None, None))
    return reference is not None and reference() is array


def source_of(array: object) -> Source | None:
    """The source of this array; `None` if the file had the array, or if it was not loaded."""
    return _by_id[id(array)][1] if is_loaded(array) else None

"""Arrays that `load_peft` read from files, by identity, so that `save_peft` writes them again.

A model cannot tell which of its arrays are not those it was pretrained with. An array that was
trained after loading is another one, and is not found here.
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
    """Note that a file holds this array, or something that makes it."""
    key = id(array)
    _by_id[key] = weakref.ref(array, lambda _: _by_id.pop(key, None)), source


def is_loaded(array: object) -> bool:
    """Whether `load_peft` read this array."""
    return _found(array) is not None


def source_of(array: object) -> Source | None:
    """The file's substitute for this array; `None` if it had the array, or was not read."""
    found = _found(array)
    return None if found is None else found[1]


def _found(array: object) -> tuple[Any, Source | None] | None:
    found = _by_id.get(id(array))
    return found if found is not None and found[0]() is array else None

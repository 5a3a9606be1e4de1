"""Arrays that `load_peft` read from files, by identity, so that `save_peft` writes them again.

A model cannot tell which of its arrays are not those it was pretrained with. An array that was
trained after loading is another one, and is not found here.
"""

import weakref

import jax

_by_id: dict[int, "weakref.ref[jax.Array]"] = {}


def remember(array: jax.Array) -> None:
    """Note that a file holds this array."""
    key = id(array)
    _by_id[key] = weakref.ref(array, lambda _: _by_id.pop(key, None))


def is_loaded(array: object) -> bool:
    """Whether `load_peft` read this array."""
    reference = _by_id.get(id(array))
    return reference is not None and reference() is array

"""Recognise the layers of foundax and pdequinox without importing these libraries."""

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def value_for(leaf: Any, table: Mapping[tuple[str, str], T]) -> T | None:
    """The value of the first class in `table`, by module and name, that `leaf` is an instance of.

    A plugin is loaded for every model, but these libraries are heavy. A model with one of their
    layers has already imported the layer's module, so as long as the module is missing, nothing can
    be an instance of its classes.
    """
    for (module, name), value in table.items():
        cls = loaded_class(module, name)
        if cls is not None and isinstance(leaf, cls):
            return value
    return None


def loaded_class(module: str, name: str) -> type | None:
    """The class, if its module is loaded."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls if isinstance(cls, type) else None

"""Recognise the layers of foundax and pdequinox without importing these heavy libraries."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def value_for(leaf: object, table: Mapping[tuple[str, str], T]) -> T | None:
    """The value in `table` for the class of `leaf`, or a base of it, by module and name."""
    classes = ((cls.__module__, cls.__name__) for cls in type(leaf).__mro__)
    return next((table[cls] for cls in classes if cls in table), None)

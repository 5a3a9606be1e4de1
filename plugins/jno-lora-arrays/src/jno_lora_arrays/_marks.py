"""Marks, in a traced function, where it reads the weight of an adapted layer.

Such a read is staged out as a call of a jitted function of its own, whose name is the mark.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu

from jno.lora import merge_lora

from .layer import is_declared


class _Shape(NamedTuple):
    """In the place of an array."""

    shape: tuple[int, ...]


class Mark(NamedTuple):
    """A read of the merged weight of an adapter of this structure."""

    treedef: Any
    leaves: tuple[Any, ...]  # `_Shape` for an array
    adapter_name: str
    read: Callable[[list[Any]], Any]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the adapter's arrays."""
        return [leaf.shape for leaf in self.leaves if type(leaf) is _Shape]

    def adapter(self, arrays: list[Any]) -> Any:
        """The adapter that holds these arrays."""
        return _filled(self.treedef, self.leaves, arrays)


_numbers = itertools.count()
_marks: dict[str, Mark] = {}


def read_marked(adapter: Any, name: str) -> Any:
    """The attribute `name` of the merged layer, marked if it is the weight."""
    # A bias is cheap to merge. The matrix of a declared array has other axes than the array.
    if name != "weight" or is_declared(adapter):
        return getattr(merge_lora(adapter), name)
    leaves, treedef = jtu.tree_flatten(adapter)
    shapes = tuple(_Shape(x.shape) if eqx.is_array(x) else x for x in leaves)
    try:
        mark = _mark(treedef, shapes, type(adapter).__name__)
    except TypeError:  # a leaf that cannot be hashed
        return merge_lora(adapter).weight
    return mark.read([x for x in leaves if eqx.is_array(x)])


def mark_called(label: str) -> Mark | None:
    """The mark of this label."""
    return _marks.get(label)


# JAX keeps traced functions, and the labels in them, so that no mark may be forgotten.
@functools.cache
def _mark(treedef: Any, leaves: tuple[Any, ...], adapter_name: str) -> Mark:
    label = f"read_of_jno_lora_{next(_numbers)}"

    def read(arrays: list[Any]) -> Any:
        return merge_lora(_filled(treedef, leaves, arrays)).weight

    read.__name__ = label
    mark = _marks[label] = Mark(treedef, leaves, adapter_name, jax.jit(read))
    return mark


def _filled(treedef: Any, leaves: tuple[Any, ...], arrays: list[Any]) -> Any:
    rest = iter(arrays)
    return jtu.tree_unflatten(treedef, [next(rest) if type(x) is _Shape else x for x in leaves])

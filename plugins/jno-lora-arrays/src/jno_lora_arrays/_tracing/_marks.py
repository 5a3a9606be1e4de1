"""Marks, in a traced function, where it reads the weight of an adapted layer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array

from jno.lora import merge_lora

from .._box import is_declared


class Mark(NamedTuple):
    """A read of the weight of an adapter. `leaves` contains the shape of each array."""

    treedef: Any
    leaves: tuple[object, ...]
    adapter_name: str

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in self.leaves if type(leaf) is jax.ShapeDtypeStruct]

    def adapter(self, arrays: list[Array]) -> Any:
        remaining = iter(arrays)
        return jtu.tree_unflatten(
            self.treedef,
            [next(remaining) if type(x) is jax.ShapeDtypeStruct else x for x in self.leaves],
        )


class MarkedName(str):
    """The name of a jitted function that reads a weight. JAX keeps the object in the equation."""

    mark: Mark


def read_marked(adapter: Any, name: str) -> Any:
    """The attribute `name` of the merged layer, marked if it is the weight."""
    # A bias is cheap to merge. The matrix of a declared array has other axes than the array.
    if name != "weight" or is_declared(adapter):
        return getattr(merge_lora(adapter), name)
    leaves, treedef = jtu.tree_flatten(adapter)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x for x in leaves)
    try:
        # The text distinguishes static fields that compare equal, such as 1, 1.0 and True.
        read = _reader(Mark(treedef, shapes, type(adapter).__name__), str(treedef))
    except (TypeError, ValueError):  # leaves that cannot be hashed, or static arrays
        return merge_lora(adapter).weight
    return read([x for x in leaves if eqx.is_array(x)])


# Adapters with equal structures share a trace. `_text` is part of the key.
@functools.lru_cache(maxsize=1024)
def _reader(mark: Mark, _text: str) -> Callable[[list[Array]], Array]:
    def read(arrays: list[Array]) -> Array:
        return merge_lora(mark.adapter(arrays)).weight

    name = MarkedName(f"weight_of_{mark.adapter_name}")
    name.mark = mark
    read.__name__ = name
    return jax.jit(read)

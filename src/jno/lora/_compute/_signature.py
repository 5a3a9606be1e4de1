"""The signature of arguments: everything that a compiled program depends on.

Classes, static fields, shapes and dtypes; not the values of arrays, nor the devices they lie on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer


class TracedError(Exception):
    """JAX traces an array, and only arrays with values can be used."""


class _Array(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    weak_type: bool


class Signature(NamedTuple):
    """The signature of a tree. It can be hashed if static fields and leaves can be hashed."""

    treedef: Any
    types: Any  # of the static fields
    leaves: tuple[Any, ...]  # an `_Array` for an array, else the type, the leaf, and a float's sign
    float_dtype: Any  # which shows whether x64 is enabled

    def abstract(self) -> list[jax.ShapeDtypeStruct]:
        """Arrays without values, to trace a function with."""
        # NumPy's arrays may have 64 bits where JAX has 32. Newer versions of JAX warn of that.
        held = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)
        return [
            jax.ShapeDtypeStruct(leaf.shape, held(leaf.dtype), weak_type=leaf.weak_type)
            for leaf in self.leaves
            if type(leaf) is _Array
        ]

    def tree_of(self, arrays: list[Any]) -> Any:
        """The tree of this signature with `arrays`."""
        remaining = iter(arrays)
        leaves = [next(remaining) if type(leaf) is _Array else leaf[1] for leaf in self.leaves]
        return jtu.tree_unflatten(self.treedef, leaves)


class SignedTree(NamedTuple):
    """The signature of a tree, and the arrays in it."""

    signature: Signature
    arrays: list[Any]


def signature_of(tree: Any) -> SignedTree:
    """The signature of `tree`, and its arrays.

    **Raises:** `TracedError` if an array is traced.
    """
    leaves, treedef = jtu.tree_flatten(tree)
    arrays: list[Any] = []
    signatures: list[Any] = []
    for leaf in leaves:
        if _is_array_class(type(leaf)):
            signatures.append(_Array(leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)))
            arrays.append(leaf)
        elif type(leaf) is float:
            signatures.append((float, leaf, math.copysign(1, leaf)))  # 0.0 equals -0.0
        else:
            signatures.append((type(leaf), leaf))
    float_dtype = jax.dtypes.canonicalize_dtype(float)
    return SignedTree(
        Signature(treedef, static_key(treedef), tuple(signatures), float_dtype), arrays
    )


@functools.lru_cache(maxsize=256)
def _is_array_class(cls: type) -> bool:
    """Whether the instances of a class are arrays. `isinstance` for each leaf would be slow.

    **Raises:** `TracedError` for a class of traced arrays.
    """
    if issubclass(cls, Tracer):
        raise TracedError("an argument is traced")
    return issubclass(cls, jax.Array | np.ndarray | np.generic)


def static_key(treedef: Any, key_of: Callable[[Any], Any] = type) -> Any:
    """A key for the static fields of a tree: `treedef` alone treats 1, 1.0 and True as equal.

    - `key_of`: gives the key of a value, by default its type. Tuples, lists and frozen dataclasses
        are keyed by their contents, and floats by their digits.
    """

    def key(value: Any) -> Any:
        cls = type(value)
        if cls is float:
            return (cls, repr(value))  # 0.0 equals -0.0
        if isinstance(value, tuple | list):
            return (cls, *map(key, value))
        if fields := _frozen_fields(cls):
            return (cls, *(key(getattr(value, field, None)) for field in fields))
        return key_of(value)

    keys, nodes = [], [treedef]
    while nodes:  # a loop, because a model has thousands of nodes
        node = nodes.pop()
        data = node.node_data()
        if data is not None:
            if data[1] is not None:
                keys.append(key(data[1]))
            nodes += node.children()
    return tuple(keys)


@functools.lru_cache(maxsize=256)
def _frozen_fields(cls: Any) -> tuple[str, ...]:
    """The names of the fields of a frozen dataclass; none for other classes."""
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # pyright: ignore
        return ()
    return tuple(field.name for field in dataclasses.fields(cls))

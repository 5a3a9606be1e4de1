"""Nodes that compute a weight by a function, taken apart: their raw arrays are declared arrays."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from jno.lora import merge_lora

from ._box import is_declared, refuse_dropout


class TakenApart:
    """The base class of nodes that were taken apart. No fields."""


def library_class(node: object) -> type | None:
    """The class `AbstractUnwrappable` that the class of `node` derives from, or `None`."""
    # Found by name, because paramax may not be installed, and other libraries have such nodes too.
    return next((c for c in type(node).__mro__ if c.__name__ == "AbstractUnwrappable"), None)


def is_non_trainable(node: object) -> bool:
    """Whether `node` stops the gradients of its arrays."""
    return any(c.__name__ == "NonTrainable" for c in type(node).__mro__)


def is_unwrappable(node: object) -> bool:
    """Whether `node` computes a value by a function, as the nodes of paramax do."""
    return library_class(node) is not None


def leaves_of(node: PyTree) -> tuple[list[tuple[Any, PyTree]], Any]:
    """The leaves of `node` with their key paths, and its structure. Nodes inside are leaves."""
    return jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node and is_unwrappable(x))


@functools.cache
def taken_apart_class(library_class: Any) -> Callable[..., TakenApart]:
    """The class of nodes with declared arrays, which the library opens as its own nodes."""

    class RawNode(library_class, TakenApart):
        """A node that was taken apart, so that adapters can be put into it.

        - `raw`: its raw arrays, declared.
        - `leaves`: its remaining leaves, with `None` at the `places` of the raw arrays.
        - `structure`: its structure. The library opens inner nodes first, so it would open the node
            itself before the adapters act.
        """

        raw: tuple[PyTree, ...]
        leaves: tuple[PyTree, ...]
        places: tuple[int, ...] = eqx.field(static=True)
        structure: Any = eqx.field(static=True)

        def unwrap(self) -> PyTree:
            """The value of the function, for the raw arrays with their adapters."""
            return self.node().unwrap()

        def node(self) -> PyTree:
            """The node, with the adapters folded into its raw arrays."""
            leaves = list(self.leaves)
            for array in self.raw:
                refuse_dropout(array)
            for place, array in zip(self.places, bare_arrays(merge_lora(self.raw)), strict=True):
                leaves[place] = array
            return jtu.tree_unflatten(self.structure, leaves)

        def __reduce__(self) -> tuple[Callable[..., TakenApart], tuple[PyTree, ...]]:
            # Neither a local class nor the structure can be pickled, but the node can.
            pairs = enumerate(self.leaves)
            leaves = [... if place in self.places else leaf for place, leaf in pairs]
            return _taken_apart, (jtu.tree_unflatten(self.structure, leaves), self.raw)

    RawNode.__qualname__ = "RawNode"
    return RawNode


def _taken_apart(node: PyTree, raw: tuple[PyTree, ...]) -> TakenApart:
    """The `RawNode` of `raw`, and of a node with `...` in the places of the raw arrays."""
    leaves_with_keys, structure = leaves_of(node)
    leaves = [leaf for _, leaf in leaves_with_keys]
    places = tuple(place for place, leaf in enumerate(leaves) if leaf is ...)
    remaining = tuple(None if leaf is ... else leaf for leaf in leaves)
    return taken_apart_class(library_class(node))(raw, remaining, places, structure)


def bare_arrays(tree: PyTree) -> PyTree:
    """Replace the declared arrays of `tree`, which has no adapters, by bare arrays."""
    return jtu.tree_map(lambda x: x.plain() if is_declared(x) else x, tree, is_leaf=is_declared)


def put_together(tree: PyTree) -> PyTree:
    """`tree`, which has no adapters, with the nodes that were taken apart, inner nodes first."""

    def is_inner(x: object) -> bool:
        return x is not tree and isinstance(x, TakenApart)

    tree = jtu.tree_map(lambda x: put_together(x) if is_inner(x) else x, tree, is_leaf=is_inner)
    return tree.node() if isinstance(tree, TakenApart) else tree  # pyright: ignore

"""The layers that adapters were put around, for adapters that rebuild them.

PiSSA's `base` is what the trained factors leave of the weight, so its `unwrap` gives the weight
back to rounding only. Whoever still has the layer itself gives it back bit for bit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_wrapper
from .._merge import unwrap_lora
from .._paths import KeyPath, path_str

M = TypeVar("M")


class Original(NamedTuple):
    """A layer as it was before adapting, and the `base` that an adapter made of it."""

    layer: Any
    base: Any


def originals_of(plain: PyTree, adapted: PyTree) -> dict[str, Original]:
    """By path, the layers of `plain` that the adapters of `adapted` keep in another form."""
    nodes, treedef = jtu.tree_flatten_with_path(adapted, is_leaf=is_wrapper)
    layers = treedef.flatten_up_to(plain)
    return {
        path_str(keys): Original(layer, node.base)
        for (keys, node), layer in zip(nodes, layers, strict=True)
        if is_wrapper(node)
        and not is_wrapper(layer)
        and type(node).unwrap is not LoRAWrapper.unwrap
    }


def unwrapped_exactly(model: M, originals: Mapping[str, Original]) -> M:
    """`unwrap_lora(model)`, with the original layers where the adapters' bases are untouched.

    A base that was trained is another array than the one that the adapter made.
    """

    def restore(keys: KeyPath, node: Any) -> Any:
        original = originals.get(path_str(keys)) if is_wrapper(node) else None
        return node if original is None or not _same(node.base, original.base) else original.layer

    return unwrap_lora(jtu.tree_map_with_path(restore, model, is_leaf=is_wrapper))


def _same(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(here is there for here, there in leaves)

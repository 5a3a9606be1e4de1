"""Which layers an adapter class is for, and which layers of a model are adapted."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.tree_util as jtu

from ._contract import LoRAWrapper, is_wrapper
from ._paths import path_str


def claims(cls: type[LoRAWrapper], layer: Any) -> bool:
    """Whether `cls` says that it is for `layer`. One that cannot answer has not said yes."""
    try:
        return bool(cls.applies_to(layer))
    except Exception:
        return False


def holds_adapters(tree: Any) -> bool:
    """Whether any layer of `tree` is adapted."""
    return any(is_wrapper(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_wrapper))


def adapted_layers(model: Any) -> Iterator[tuple[str, LoRAWrapper]]:
    """Every adapted layer of `model` that is in no other, with its path."""
    for keys, node in jtu.tree_leaves_with_path(model, is_leaf=is_wrapper):
        if is_wrapper(node):
            yield path_str(keys), node

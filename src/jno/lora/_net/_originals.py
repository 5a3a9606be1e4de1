"""The original layers, for adapters that change the layer that they hold.

PiSSA's `base` is the residual of the weight, so its `unwrap` restores the weight only up to
rounding. A net keeps the layer itself, and restores it bit for bit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_wrapper
from .._merge import unwrap_lora
from .._tree import adapted_layers, map_adapters

M = TypeVar("M")


class Original(NamedTuple):
    """A layer as it was before adapting, and the `base` that an adapter made of it."""

    layer: Any
    base: Any


def originals_of(plain: PyTree, adapted: PyTree) -> dict[str, Original]:
    """By path, the layers of `plain` that are changed inside the adapters of `adapted`."""
    return {
        path: Original(layer, adapter.base)
        for path, adapter, layer in adapted_layers(adapted, plain)
        if not is_wrapper(layer) and type(adapter).unwrap is not LoRAWrapper.unwrap
    }


def unwrapped_exactly(model: M, originals: Mapping[str, Original]) -> M:
    """`unwrap_lora(model)`, with the original layers where the adapters' bases are untouched.

    Training a base replaces its arrays by others.
    """

    def restore(path: str, adapter: LoRAWrapper) -> Any:
        original = originals.get(path)
        if original is None or not _same(adapter.base, original.base):
            return adapter
        return original.layer

    return unwrap_lora(map_adapters(restore, model))


def _same(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(here is there for here, there in leaves)

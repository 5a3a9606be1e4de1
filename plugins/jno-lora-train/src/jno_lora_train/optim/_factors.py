"""The factors of the products in adapters, as declared by their classes (`factor_sides`)."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter
from jno.lora.extending import is_adapter

KeyPath = tuple[object, ...]

ADVICE = (
    "Give optax the trained part of an adapted model, `net.partition()[0]`. The class of an "
    "adapter says in `factor_sides` which of its fields are factors."
)


class Factor(NamedTuple):
    """A factor of a product, and its key path in the tree."""

    keys: KeyPath
    array: Array


# By side, for each field, the factors by their path in the field.
Sides = dict[str, list[dict[KeyPath, Factor]]]


class Product(NamedTuple):
    """The product `B A` in an adapter. `inner`: the path of both factors in their fields."""

    adapter: LoRAWrapper
    A: Factor
    B: Factor
    inner: KeyPath = ()


def factors(tree: PyTree, keys: KeyPath = ()) -> Iterator[tuple[LoRAWrapper, Sides]]:
    """Each adapter of `tree`, with its factors by side, by field, and by their path in the field.

    Fields whose arrays were taken out (`eqx.partition`, `optax.masked`) have no factors. An adapter
    may contain adapters.

    - `keys`: the key path of `tree` itself.
    """
    for inner, adapter in jtu.tree_leaves_with_path(tree, is_leaf=is_adapter):
        if not is_adapter(adapter):
            continue
        fields = {name: value for name, value in vars(adapter).items() if name != "base"}
        sides: Sides = {"input": [], "output": []}
        for name, side in MatrixAdapter.of(type(adapter)).factor_sides.items():
            place = (*keys, *inner, jtu.GetAttrKey(name))
            leaves = jtu.tree_leaves_with_path(fields.get(name))
            sides[side].append({k: Factor((*place, *k), leaf) for k, leaf in leaves})
        yield adapter, sides
        for name, value in fields.items():
            yield from factors(value, (*keys, *inner, jtu.GetAttrKey(name)))


def products(tree: PyTree) -> Iterator[Product]:
    """The products in `tree` that have both factors."""
    for adapter, sides in factors(tree):
        for inputs, outputs in zip(sides["input"], sides["output"], strict=False):
            for inner, A in inputs.items():
                if inner in outputs:
                    yield Product(adapter, A, outputs[inner], inner)

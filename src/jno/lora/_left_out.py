"""The layers of a model that have no adapter, and how many parameters they have."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._compute.precision import count_reals
from ._contract.coded import is_coded
from ._contract.wrapper import is_adapter
from ._paths import KeyPath, listed, path_str, show_path
from ._showing.grouping import grouped
from ._tree import map_adapters, modules_in


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The layers that have matrices (arrays of two axes or more) but no adapter.

    - `sizes`: the parameters in these matrices, by the path of their layer.
    - `total`: the parameters of the whole model, without adapters.
    """

    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    total: int = 0

    @property
    def is_worth_a_line(self) -> bool:
        """Whether the matrices have at least one percent of the parameters."""
        return sum(self.sizes.values()) > 0.01 * self.total

    def __str__(self) -> str:
        left_out, layers = sum(self.sizes.values()), len(self.sizes)
        names = [path for path, _, _ in grouped((show_path(path), ()) for path in self.sizes)]
        return (
            f"{left_out:,} parameters ({100 * left_out / max(self.total, 1):.0f} %) in {layers} "
            f"{'layer' if layers == 1 else 'layers'} have no adapter: "
            f"{listed(names, 6)}"
        )


def layers_left_out(model: PyTree, total: int, wrapped: Container[KeyPath] = ()) -> LeftOut:
    """The layers of `model` with matrices outside of adapters, and outside of `wrapped` layers."""
    modules = {keys for keys, _ in modules_in(model)}
    sizes: dict[str, int] = {}
    for keys, leaf in jtu.tree_leaves_with_path(
        model, is_leaf=lambda node: is_adapter(node) or is_coded(node)
    ):
        outer = [keys[:length] for length in range(len(keys), -1, -1)]
        is_matrix = is_parameter(leaf) and len(leaf.shape) >= 2
        if is_matrix and not any(place in wrapped for place in outer):
            # An array outside of all modules counts as a layer.
            layer = path_str(next((place for place in outer if place in modules), keys))
            sizes[layer] = sizes.get(layer, 0) + count_reals(leaf)
    return LeftOut(sizes, total)


def count_plain(model: PyTree) -> int:
    """The parameters of `model`, without its adapters."""
    plain = map_adapters(lambda _, adapter: adapter.base, model)
    leaves = jax.tree.leaves(plain, is_leaf=is_coded)
    return sum(count_reals(leaf) for leaf in leaves if is_parameter(leaf))


def is_parameter(leaf: Any) -> bool:
    """Whether `leaf` is an array of real or complex numbers, or stands for such an array."""
    is_array = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) or is_coded(leaf)
    return is_array and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))

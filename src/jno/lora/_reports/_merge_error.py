"""How much of an adapter's update is lost to rounding when it is merged."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._compute import widened
from .._contract import LoRAWrapper, check_same_structure, merged_layer, unwrapped_layer
from .._errors import WrapperError
from .._sharding import on_the_mesh


def error_of_merging(adapter: LoRAWrapper) -> float | None:
    """`||merge(W) - W'|| / ||W' - W||`: the part of the update that rounding takes away.

    `merge(W)` is the merged layer in the dtype of the base, and `W'` the same in a wider dtype
    (float32 for half precision, float64 for float32). The error of a float64 layer is 0. The norms
    are over all arrays of the layer.

    **Returns:** `None` if the adapter cannot be merged, or has not changed anything yet.
    """
    with jax.enable_x64(True):
        wide = widened(adapter)
        try:
            merged = on_the_mesh(adapter, merged_layer, adapter)
            exact = on_the_mesh(wide, merged_layer, wide)
        except WrapperError:
            return None
        check_same_structure(adapter.base, merged, "`merge()`")
        update = _distance(exact, on_the_mesh(wide, unwrapped_layer, wide))
        return None if update == 0 else float(_distance(merged, exact) / update)


def _distance(one: Any, other: Any) -> float:
    """The Frobenius norm of the difference. Sharded arrays are not gathered."""

    def squared(x: Any, y: Any) -> Any:
        difference = jnp.abs(x.astype(y.dtype) - y)
        return jnp.sum(difference * difference, dtype=jnp.float64)

    pairs = jax.tree.map(
        squared, *(eqx.filter(tree, eqx.is_inexact_array) for tree in (one, other))
    )
    return float(sum(jax.tree.leaves(pairs))) ** 0.5

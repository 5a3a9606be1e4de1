"""Layers merged in wider dtypes, and how much of an update is lost to rounding in their own."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._compute import widened
from .._contract import (
    LoRAWrapper,
    check_same_structure,
    merged_layer,
    refusal_of_template,
    unwrapped_layer,
)
from .._errors import WrapperError, failing
from .._paths import show_place
from .._sharding import on_the_mesh


def measuring(adapter: LoRAWrapper, what: str) -> AbstractContextManager[None]:
    """An exception inside becomes a `WrapperError` that says "Could not WHAT"."""
    return failing(
        what, WrapperError, partial(refusal_of_template, adapter, "Give the model itself.")
    )


def before_and_after(adapter: LoRAWrapper) -> tuple[Any, Any]:
    """The layer before adapting, and the merged layer, in wider dtypes. Needs x64."""
    wide = widened(adapter)
    return on_the_mesh(wide, unwrapped_layer, wide), on_the_mesh(wide, merged_layer, wide)


def error_of_merging(adapter: LoRAWrapper, path: str) -> float | None:
    """`||merge(W) - W'|| / ||W' - W||`: the part of the update that rounding takes away.

    `merge(W)` is the merged layer in the dtype of the base, and `W'` the same in a wider dtype
    (float32 for half precision, float64 for float32). The error of a float64 layer is 0. The norms
    are over all arrays of the layer.

    **Returns:** `None` if the adapter cannot be merged, or has not changed anything yet.
    """
    what = f"measure what merging {show_place(type(adapter), path)} would cost"
    with measuring(adapter, what), jax.enable_x64(True):
        try:
            merged = on_the_mesh(adapter, merged_layer, adapter)
            before, exact = before_and_after(adapter)
        except WrapperError:
            return None
        check_same_structure(adapter.base, merged, "`merge()`")
        update = _distance(exact, before)
        return _distance(merged, exact) / update if update else None


def _distance(one: Any, other: Any) -> float:
    """The Frobenius norm of the difference. Sharded arrays are not gathered."""

    def squared(x: Any, y: Any) -> Any:
        difference = jnp.abs(x.astype(y.dtype) - y)
        return jnp.sum(difference * difference, dtype=jnp.float64)

    arrays = (eqx.filter(tree, eqx.is_inexact_array) for tree in (one, other))
    return float(sum(jax.tree.leaves(jax.tree.map(squared, *arrays)))) ** 0.5

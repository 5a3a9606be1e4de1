"""Stacked layers: one object that holds many layers along leading axes.

`eqx.filter_vmap` of a constructor builds them, and `lax.scan` or `vmap` run them. Functions that
are written for one layer (an adapter's constructor, its `merge`) are mapped over those axes here.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray


def over_stack(function: Callable[..., Any], ndim: int) -> Callable[..., Any]:
    """`function`, mapped over the `ndim` leading axes of every array in its arguments."""
    for _ in range(ndim):
        function = eqx.filter_vmap(function)
    return function


def keys_for_stack(key: PRNGKeyArray, layer: Any, ndim: int) -> Array:
    """One key for each slice of a layer that is stacked along `ndim` leading axes."""
    if ndim == 0:
        return key
    arrays = [leaf for leaf in jax.tree.leaves(layer) if eqx.is_array(leaf)]
    return jax.random.split(key, arrays[0].shape[:ndim])

"""Directions and their weights kept apart, for a value of the parameter per example."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper
from jno.lora.extending import over_stack


def is_traced(array: Any) -> bool:
    """Whether `array` has no value yet: inside `jit`, `vmap` or a derivative."""
    return isinstance(array, Tracer)


def with_weights(
    adapter: Any, directions: Mapping[str, Any], phi: Float[Array, " K"]
) -> LoRAWrapper | None:
    """`adapter.with_directions(directions, phi)`, mapped over the axes of a stack.

    - `directions`: by field, with the axis `K` in front of the axes of a stack.
    """
    ndim = type(adapter).stack_ndim(adapter.base)

    def behind(d: Array) -> Array:
        return jnp.moveaxis(d, 0, ndim)

    def of_layer(layer: Any, along: Any) -> Any:
        return layer.with_directions(along, phi)

    return over_stack(of_layer, ndim)(adapter, jax.tree.map(behind, dict(directions)))

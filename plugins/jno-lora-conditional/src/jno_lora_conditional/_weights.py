"""Keep directions and weights apart, so that each example can have its own parameter."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jno.lora import MatrixAdapter
from jno.lora.extending import over_stack


def apart(
    adapter: Any, directions: Mapping[str, Any], from_zero: tuple[str, ...], phi: Float[Array, " K"]
) -> tuple[Any, Mapping[str, Any]]:
    """The adapter, with directions and weights apart if possible, and the remaining directions.

    - `directions`: by field, with the axis `K` in front of the axes of a stack.
    - `from_zero`: the fields that start as zero.
    """
    # Weights with values are not mapped over. The sums are cheapest then, and train as usual.
    if not from_zero or not isinstance(phi, Tracer):
        return adapter, directions
    cls = MatrixAdapter.of(type(adapter))
    ndim = cls.stack_ndim(adapter.base)

    def behind_the_stack(d: Array) -> Array:
        return jnp.moveaxis(d, 0, ndim)

    def of_layer(layer: Any, given: Any) -> Any:
        return cls.with_directions(layer, given, phi)

    given = jax.tree.map(behind_the_stack, {name: directions[name] for name in from_zero})
    weighted = over_stack(of_layer, ndim)(adapter, given)
    if weighted is None:
        return adapter, directions
    return weighted, {name: d for name, d in directions.items() if name not in from_zero}

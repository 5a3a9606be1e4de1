"""One trace for all layers with the same form."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.core import Tracer

from jno.lora.extending import filler


def traced_once(function: Callable[[Any, Any], Any], layer: Any, x: Any) -> Any:
    """`function(layer, x)`. While JAX traces, layers with the same form share a trace.

    JAX then traces, differentiates and batches the function only once for these layers, and the
    compiler inlines it.

    Layers do not share a trace if none of their arrays is traced, if a leaf is not an array, if a
    static field is an array, or in Taylor mode, which treats all arguments of a nested jit as
    varying, and fails at loops over factors. `function` must be pure.
    """
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layer)):
        return function(layer, x)
    # The arrays of `resolve` become leaves, because a trace would keep them as constants.
    leaves, treedef = jax.tree.flatten((filler(layer)(layer), x))
    if not all(map(eqx.is_array, leaves)) or any(map(in_taylor_mode, leaves)):
        return function(layer, x)
    try:
        # The text distinguishes static fields that compare equal, such as 1, 1.0 and True.
        return _trace(function, treedef, str(treedef), leaves)
    except ValueError:  # static arrays, which cannot be compared
        return function(layer, x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trace(function: Callable[[Any, Any], Any], treedef: Any, text: str, leaves: list[Any]) -> Any:
    return function(*jtu.tree_unflatten(treedef, leaves))


def in_taylor_mode(tracer: Any) -> bool:
    """Whether `tracer`, which may be any value, has a Taylor series (`jax.experimental.jet`)."""
    jet = sys.modules.get("jax.experimental.jet")
    while jet is not None and isinstance(tracer, Tracer):
        if isinstance(tracer, jet.JetTracer):
            return True
        # The tracer of the outer transformation, `grad` or `vmap`.
        tracer = getattr(tracer, "primal", getattr(tracer, "val", None))
    return False

"""One trace for all layers with the same form."""

import enum
import functools
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer

from jno.lora.extending import static_key


def traced_once(function: Callable[[Any, Any], Any], layer: Any, x: Any) -> Any:
    """`function(layer, x)`. While JAX traces, layers with the same form share a trace.

    JAX then traces, differentiates and batches the function only once for these layers, and the
    compiler inlines it.

    Layers do not share a trace if none of their arrays is traced, if a leaf is not an array, if a
    static field could change, or in Taylor mode, which treats all arguments of a nested jit as
    varying, and fails at loops over factors. `function` must be pure.
    """
    leaves, treedef = jax.tree.flatten((layer, x))
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layer))
    if not is_traced or not all(map(eqx.is_array, leaves)) or any(map(in_taylor_mode, leaves)):
        return function(layer, x)
    try:
        key = static_key(treedef, _constant)
    except TypeError:
        return function(layer, x)
    return _program(function, treedef, key)(leaves)


@functools.lru_cache(maxsize=1024)
def _program(function: Callable[[Any, Any], Any], treedef: Any, key: Any) -> Callable[..., Any]:
    return jax.jit(lambda leaves: function(*jtu.tree_unflatten(treedef, leaves)))


_PLAIN = (int, bool, str, type(None))


def _constant(value: Any) -> Any:
    """A key for a static value. **Raises:** `TypeError` if it could change."""
    kind = type(value)
    is_plain = kind in _PLAIN or isinstance(value, type | np.dtype | enum.Enum)
    # A sentinel, such as Equinox's for a missing value, is an object without attributes.
    if is_plain or (getattr(value, "__dict__", None) == {} and not callable(value)):
        return kind, value
    raise TypeError(f"{value!r} could change")


def in_taylor_mode(tracer: Any) -> bool:
    """Whether `tracer`, which may be any value, has a Taylor series (`jax.experimental.jet`)."""
    jet = sys.modules.get("jax.experimental.jet")
    while jet is not None and isinstance(tracer, Tracer):
        if isinstance(tracer, jet.JetTracer):
            return True
        # The tracer of the outer transformation, `grad` or `vmap`.
        tracer = getattr(tracer, "primal", getattr(tracer, "val", None))
    return False

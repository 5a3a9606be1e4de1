"""Tracing once what many layers do alike."""

import dataclasses
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


def traced_once(function: Callable[[Any, Any], Any], layer: Any, x: Any) -> Any:
    """`function(layer, x)`. While JAX traces, layers that are alike share one trace.

    A deep model has many layers of one form: JAX then traces, differentiates and batches the
    function once for all of them. The compiler inlines it.

    Nothing is shared if no array of the layer is traced; if something else than an array is a leaf;
    if a static field could change; or in Taylor mode, which takes all arguments of a nested jit for
    varying, and fails at loops over factors.

    **Arguments:** `function` is pure: it depends on its arguments alone, and notes nothing.
    """
    leaves, treedef = jax.tree.flatten((layer, x))
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layer))
    if not is_traced or not all(map(eqx.is_array, leaves)) or any(map(in_taylor_mode, leaves)):
        return function(layer, x)
    try:
        key = _constants(treedef)
    except TypeError:
        return function(layer, x)
    return _program(function, treedef, key)(leaves)


@functools.lru_cache(maxsize=1024)
def _program(function: Callable[[Any, Any], Any], treedef: Any, key: Any) -> Callable[..., Any]:
    return jax.jit(lambda leaves: function(*jtu.tree_unflatten(treedef, leaves)))


def _constants(treedef: Any) -> Any:
    """All static fields of a tree, to be hashed. **Raises:** `TypeError` if one could change.

    The structure alone does not tell 1 from 1.0 and True, and hashes none of them.
    """
    data = treedef.node_data()
    return data and (_constant(data[1]), *map(_constants, treedef.children()))


def _constant(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, tuple):
        return (kind, *map(_constant, value))
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # pyright: ignore
        fields = (getattr(value, field.name) for field in dataclasses.fields(kind))
        return (kind, *map(_constant, fields))
    if kind is float:
        return kind, repr(value)  # -0.0 equals 0.0
    is_plain = kind in _PLAIN or isinstance(value, type | np.dtype | enum.Enum)
    # A marker, such as Equinox's own for a field without a value, is an object without attributes.
    if is_plain or (getattr(value, "__dict__", None) == {} and not callable(value)):
        return kind, value
    raise TypeError(f"{value!r} could change")


_PLAIN = (int, bool, str, type(None))


def in_taylor_mode(tracer: Any) -> bool:
    """Whether `tracer` carries a Taylor series (`jax.experimental.jet`). Any value may be asked."""
    jet = sys.modules.get("jax.experimental.jet")
    while jet is not None and isinstance(tracer, Tracer):
        if isinstance(tracer, jet.JetTracer):
            return True
        # That of the transformation around, of `grad` or of `vmap`.
        tracer = getattr(tracer, "primal", getattr(tracer, "val", None))
    return False

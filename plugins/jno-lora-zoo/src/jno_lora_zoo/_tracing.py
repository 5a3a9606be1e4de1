"""Tracing once what many layers do alike."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer


def traced_once(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`. While JAX traces, calls that are alike share one trace.

    A deep model has many layers of one form: JAX then traces, differentiates and batches the
    function once for all of them. The compiler inlines it.

    **Arguments:**

    - `function`: a pure function.
    - `args`: trees of arrays and static values.

    Nothing is shared if a static value cannot be hashed, or in Taylor mode, which takes all
    arguments of a nested jit for varying, and fails at loops over factors.
    """
    traced = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, Tracer)]
    if traced and _is_hashable(args) and not any(map(_is_in_taylor_mode, traced)):
        function = _compiled(function)
    return function(*args)


_compiled = functools.cache(eqx.filter_jit)


def _is_hashable(tree: Any) -> bool:
    static = eqx.filter(tree, eqx.is_array_like, inverse=True)
    try:
        hash((jax.tree.structure(tree), *jax.tree.leaves(static)))
    except TypeError:
        return False
    return True


def _is_in_taylor_mode(tracer: Any) -> bool:
    jet = sys.modules.get("jax.experimental.jet")
    while jet is not None and isinstance(tracer, Tracer):
        if isinstance(tracer, jet.JetTracer):
            return True
        # That of the transformation around, of `grad` or of `vmap`.
        tracer = getattr(tracer, "primal", getattr(tracer, "val", None))
    return False

"""Call what is written for one layer on a stack of layers, on a template, or on any module.

`eqx.filter_vmap` of a constructor builds stacks: one object with many layers along leading axes,
which `lax.scan` or `vmap` run. `eqx.filter_eval_shape` makes templates, with shapes instead of
arrays. Adapter classes are asked about every module of a model, and may raise on some of them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree

T = TypeVar("T")


def over_stack(function: Callable[..., Any], ndim: int) -> Callable[..., Any]:
    """`function`, mapped over the `ndim` leading axes of every array in its arguments."""
    for _ in range(ndim):
        function = eqx.filter_vmap(function)
    return function


def keys_for_stack(key: PRNGKeyArray, layer: PyTree, ndim: int) -> Array:
    """One key for each slice of a layer that is stacked along `ndim` leading axes."""
    if ndim == 0:
        return key
    arrays = [leaf for leaf in jax.tree.leaves(layer) if eqx.is_array(leaf)]
    return jax.random.split(key, arrays[0].shape[:ndim])


def call_or_trace(function: Callable[[Any], T], tree: PyTree) -> T:
    """`function(tree)`, which is only traced for its shapes if `tree` is a template."""
    return eqx.filter_eval_shape(function, tree) if _is_template(tree) else function(tree)


def refusal_of_template(tree: PyTree, advice: str) -> str:
    """Why `tree` has no values, followed by `advice`, if it is a template; else empty."""
    if not _is_template(tree):
        return ""
    return (
        "this is a template, as `eqx.filter_eval_shape` makes it, with shapes in the place of "
        f"arrays. {advice}"
    )


def is_traced(*trees: PyTree) -> bool:
    """Whether an array in the trees is traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def safely_applies(cls: type[Any], layer: PyTree) -> bool:
    """Whether `cls` applies to `layer`. `False` if it raises."""
    try:
        return bool(cls.applies_to(layer))
    except Exception:
        return False


def why_not(cls: type[Any], layer: PyTree) -> str | None:
    """Why `cls` does not apply to `layer`; `None` without a reason, or if it raises."""
    try:
        return cls.why_not(layer)
    except Exception:
        return None


def _is_template(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))

"""Templates: trees with shapes in the place of arrays, as `eqx.filter_eval_shape` makes them."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.core import Tracer

T = TypeVar("T")


def call_or_trace(function: Callable[[Any], T], tree: Any) -> T:
    """`function(tree)`, which is only traced, for its shapes, if `tree` is a template."""
    return eqx.filter_eval_shape(function, tree) if _is_template(tree) else function(tree)


def refusal_of_template(tree: Any, advice: str) -> str:
    """Why `tree` has no values, with `advice`, if it is a template; else empty."""
    if not _is_template(tree):
        return ""
    return (
        "this is a template, as `eqx.filter_eval_shape` makes it, with shapes in the place of "
        f"arrays. {advice}"
    )


def is_traced(*trees: Any) -> bool:
    """Whether an array in the trees is traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _is_template(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))

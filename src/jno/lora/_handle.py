"""What else than a model may be handed in for one: a `Net`, and a template of shapes."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax

from ._errors import SelectionError

T = TypeVar("T")


class Handle:
    """The base class of `Net`. No fields."""


def refuse_net(model: Any, function: str) -> None:
    """**Raises:** `SelectionError` if `model` is a `Net`, which JAX takes for one leaf."""
    if isinstance(model, Handle):
        raise SelectionError(
            f"{function} takes a model, but was given a {type(model).__name__}, which is a handle "
            f"on one. Give its module: {function}(net.module, ...)"
        )


def evaluated(function: Callable[[Any], T], tree: Any) -> T:
    """`function(tree)`; of a template, which has shapes for arrays, by tracing it."""
    return eqx.filter_eval_shape(function, tree) if _is_template(tree) else function(tree)


def without_values(tree: Any, advice: str) -> str:
    """Why nothing can be computed with `tree`, and `advice`, if it is a template; else empty."""
    if not _is_template(tree):
        return ""
    return (
        "this is a template, as `eqx.filter_eval_shape` makes it, with shapes in the place of "
        f"arrays. {advice}"
    )


def _is_template(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))

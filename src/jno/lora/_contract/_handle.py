"""What else than a model may be handed in for one: a `Net`, a set, a template of shapes."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.core import Tracer

from .._errors import JnoLoraError, SelectionError

T = TypeVar("T")


class Handle:
    """The base class of `Net`. No fields.

    JAX would take it for one leaf, and Equinox for a constant: of a net that was
    trained since, `filter_jit` would go on computing with former values, and a file would be empty.
    So every tree function refuses it.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jtu.register_pytree_node(cls, _refuse_to_flatten, lambda _, children: children)


class Loose:
    """The base class of `AdapterSet`, which is a pytree without any layer. No fields."""


def _refuse_to_flatten(net: Handle) -> Any:
    name = type(net).__name__
    raise SelectionError(
        f"A {name} is a handle on a model and no pytree, but was given to a function of pytrees "
        "(of JAX, Equinox or optax), alone or inside of something else. Give it the model, "
        "`net.module`, or a part that `net.partition()` returns."
    )


def expect_model(model: Any, function: str) -> None:
    """**Raises:** `SelectionError` if `model` is a `Net`, or a set, which holds no layers."""
    if isinstance(model, Loose):
        raise SelectionError(
            f"{function} takes a model, but was given an AdapterSet, which holds adapters without "
            f"their layers. Put them in: {function}(swap_adapters(model, adapters), ...)"
        )
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


def why(err: Exception, tree: Any, advice: str) -> str:
    """For a message: what is wrong with `tree`, of which `err` came."""
    if isinstance(err, JnoLoraError):
        return f"{err}"
    return without_values(tree, advice) or f"{type(err).__name__}: {err}"


def is_traced(*trees: Any) -> bool:
    """Whether an array in them is traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _is_template(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))

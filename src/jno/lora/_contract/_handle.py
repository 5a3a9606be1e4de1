"""Things that are not models but may be given in place of one: a `Net`, an `AdapterSet`."""

from typing import Any

import jax.tree_util as jtu

from .._errors import SelectionError


class Handle:
    """The base class of `Net`. No fields.

    Every tree function refuses it. JAX would take it for one leaf, and Equinox for a constant:
    `filter_jit` would go on computing with the values of before, and a file would be empty.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jtu.register_pytree_node(cls, _refuse_to_flatten, lambda _, children: children)


class Loose:
    """The base class of `AdapterSet`, which is a pytree without any layer. No fields."""


def _refuse_to_flatten(net: Handle) -> Any:
    name = type(net).__name__
    raise SelectionError(
        f"A {name} is a handle on a model and not a pytree, but was given to a function of pytrees "
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

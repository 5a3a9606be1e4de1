"""What tells a `Net` from a model, for functions of models that know nothing else of nets."""

from typing import Any

from ._errors import SelectionError


class Handle:
    """The base class of `Net`. No fields."""


def refuse_net(model: Any, function: str) -> None:
    """**Raises:** `SelectionError` if `model` is a `Net`, which JAX takes for one leaf."""
    if isinstance(model, Handle):
        raise SelectionError(
            f"{function} takes a model, but was given a {type(model).__name__}, which is a handle "
            f"on one. Give its module: {function}(net.module, ...)"
        )

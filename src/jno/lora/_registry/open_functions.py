"""Open functions: what a plugin registers for a class of layers, instead of a hook."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from .._contract.wrapper import LoRAWrapper
from .._errors import PluginError, SelectionError


@functools.singledispatch
def default_adapters(layer: PyTree) -> tuple[type[LoRAWrapper], ...]:
    """The adapters that calls with `wrapper=None` try on `layer`, after the defaults.

    An open function: `@default_adapters.register(MyLayer)` adds the adapters of a layer class. A
    class of Equinox, JAX or Python raises a `PluginError`.
    """
    return ()


_NOT_YOURS = {*sys.stdlib_module_names, "equinox", "jax", "jaxlib"}


def _register_default_adapters(cls: object, function: Any = None) -> Any:
    """`singledispatch`'s `register`, for layers that a user has chosen by choosing a library."""
    if not isinstance(cls, type) or cls.__module__.partition(".")[0] in _NOT_YOURS:
        raise PluginError(
            f"{getattr(cls, '__name__', cls)} gets its adapters by default from jno-lora alone, so "
            "that importing a plugin changes no call. Name the adapter in the call, or register a "
            "layer class of your own: @default_adapters.register(MyLayer)"
        )
    return _register(cls, function)


_register = default_adapters.register
default_adapters.register = _register_default_adapters  # pyright: ignore[reportAttributeAccessIssue]


@functools.singledispatch
def callable_for(layer: PyTree, model: PyTree) -> Callable[..., Any] | None:
    """The function that a `Net` calls instead of `model`, which contains `layer`.

    An open function, like `default_adapters`. `None` means the model itself.
    """
    return None


def callable_model(model: PyTree) -> Callable[..., Any]:
    """The function that a `Net` calls: `model`, or the function registered for one of its layers.

    **Raises:** `SelectionError` if the model cannot be called.
    """
    default = callable_for.dispatch(object)

    def is_registered(node: object) -> bool:
        return callable_for.dispatch(type(node)) is not default

    layers = jax.tree.leaves(model, is_leaf=is_registered)
    function = next(filter(None, (callable_for(layer, model) for layer in layers)), model)
    if not callable(function):
        raise SelectionError(
            f"The model of this net is a {type(model).__name__}, which cannot be called. Call the "
            "function that takes it: apply(net.module, x)"
        )
    return function

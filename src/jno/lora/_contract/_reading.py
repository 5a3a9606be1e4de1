"""Read a wrapper like its layer: merged weights, calls in a scope, rows of inputs."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import WrapperError
from ._calling import over_stack
from ._coded import refuse_coded, with_arrays


def merged_layer(adapter: Any) -> eqx.Module:
    """`adapter.merge()`, mapped over the axes of a stacked layer.

    **Raises:** `WrapperError` if the layer stores an array in a form that cannot represent other
    values.
    """
    refuse_coded(adapter.base)
    return over_stack(lambda layer: layer.merge(), type(adapter).stack_ndim(adapter.base))(adapter)


_read_weight: ContextVar[Callable[[Any, str], Any]] = ContextVar(
    "_read_weight", default=lambda adapter, name: getattr(merged_layer(with_arrays(adapter)), name)
)


@contextlib.contextmanager
def weights_read_by(read: Callable[[Any, str], Any]) -> Iterator[None]:
    """A context in which `read(adapter, name)` returns the merged arrays that a model reads.

    By default, `adapter.weight` is `getattr(merged_layer(adapter), "weight")`.
    """
    token = _read_weight.set(read)
    try:
        yield
    finally:
        _read_weight.reset(token)


def read_weight(adapter: Any, name: str) -> Any:
    """The merged array of this name, as the context returns it."""
    return _read_weight.get()(adapter, name)


def rows_of(values: Any, width: int, what: str) -> Array:
    """`values` as rows of this width. **Raises:** `WrapperError` if their last axis differs."""
    shape = jnp.shape(values)
    if not shape or shape[-1] != width:
        raise WrapperError(
            f"the {what} {shape} of a call are not vectors of the {width} {what} that the matrix "
            f"has. Define `{what}_of` for this kind of layer"
        )
    return jnp.reshape(jnp.asarray(values), (-1, width))


def in_scope(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` in a scope of the adapter's name, for profiles. An unsupported `key=` is dropped."""
    parameters = inspect.signature(call).parameters
    takes_key = "key" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @functools.wraps(call)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not takes_key:
            kwargs.pop("key", None)
        with jax.named_scope(type(self).__name__):
            return call(self, *args, **kwargs)

    wrapped._has_scope = True  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped

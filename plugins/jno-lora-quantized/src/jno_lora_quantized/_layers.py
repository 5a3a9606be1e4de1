"""Convolutions with quantised kernels.

JAX's convolution takes arrays only, where the product `W @ x` of a linear layer asks `W` first. So
these layers get a class of their own, whose call decodes the kernel.
"""

import copy
import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from jno.lora.coded import is_coded, with_arrays


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """The convolution of a layer without arrays and bias, as a function of its kernel."""

    frame: Any

    def __call__(self, kernel: Array, x: Array) -> Array:
        return eqx.tree_at(lambda m: m.weight, self.frame, kernel)(x)


@functools.cache
def _decoding(cls: Any) -> Any:
    """`cls`, whose call also works with a coded weight."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_plain = len(args) == 1 and kwargs.keys() <= {"key"}
        if cls.__module__.partition(".")[0] != "equinox" or not is_plain:
            return cls.__call__(with_arrays(self), *args, **kwargs)  # more than a convolution
        if not is_coded(self.weight):
            return cls.__call__(self, *args, **kwargs)
        y = self.weight.applied(_Convolution(_frame(self)), *args)
        return y if self.bias is None else y + self.bias

    def reduce(self: Any) -> Any:
        return _with_class, (cls, vars(self))

    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__call__": call,
        "__reduce__": reduce,
        "stands_for": cls,
    }
    return type(cls)(cls.__name__, (cls,), members)


def _frame(layer: Any) -> Any:
    bare = copy.copy(eqx.filter(layer, eqx.is_array, inverse=True))
    object.__setattr__(bare, "use_bias", False)
    return bare


def _with_class(cls: Any, fields: dict[str, Any]) -> Any:
    layer = object.__new__(_decoding(cls))
    for name, value in fields.items():
        object.__setattr__(layer, name, value)
    return layer


def decoding(layer: Any) -> Any:
    """`layer`, with a call that decodes its weight."""
    return _with_class(type(layer), vars(layer))


def plain(node: Any) -> Any:
    """`node` with plain arrays and, if it is a layer of `decoding`, the class that it had."""
    node = with_arrays(node)
    if not is_decoding(node):
        return node
    layer = object.__new__(type(node).stands_for)
    for name, value in vars(node).items():
        object.__setattr__(layer, name, value)
    return layer


def is_decoding(node: Any) -> bool:
    """Whether `node` is a layer of `decoding`."""
    return isinstance(node, eqx.Module) and "stands_for" in vars(type(node))


def all_plain(tree: Any) -> Any:
    """`tree`, with plain arrays and classes."""
    is_leaf = lambda node: is_coded(node) or is_decoding(node)  # noqa: E731
    return jax.tree.map(lambda node: plain(node) if is_leaf(node) else node, tree, is_leaf=is_leaf)

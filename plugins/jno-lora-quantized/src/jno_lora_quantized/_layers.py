"""Convolutions with quantised kernels: subclasses whose calls decode the kernel.

They are needed because `W @ x` of a linear layer calls a method of `W`, but JAX's convolution takes
only arrays.
"""

import copy
import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from jno.lora.extending import is_coded, with_arrays
from jno_lora_zoo import KernelLayer

from ._plan import weight_kind


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """The convolution of `frame`, a layer without arrays and bias, with a kernel."""

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
        frame = copy.copy(eqx.filter(self, eqx.is_array, inverse=True))
        object.__setattr__(frame, "use_bias", False)
        y = self.weight.applied(_Convolution(frame), *args)
        return y if self.bias is None else y + self.bias

    def reduce(self: Any) -> Any:
        return _with_class, (cls, vars(self))

    members = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"__call__": call, "__reduce__": reduce, "stands_for": cls}
    return type(cls)(cls.__name__, (cls,), members)


def _with_class(cls: Any, fields: dict[str, Any]) -> Any:
    return _new(_decoding(cls), fields)


def _new(cls: Any, fields: dict[str, Any]) -> Any:
    """A layer of a class with these fields, made without its constructor."""
    layer = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(layer, name, value)
    return layer


def decoding(tree: Any) -> Any:
    """`tree`, whose convolutions with coded kernels get a call that decodes."""

    def is_convolution(node: Any) -> bool:
        kind = weight_kind(node) if is_coded(getattr(node, "weight", None)) else None
        return kind is not None and issubclass(kind, KernelLayer)

    def with_call(node: Any) -> Any:
        return _with_class(type(node), vars(node)) if is_convolution(node) else node

    return jax.tree.map(with_call, tree, is_leaf=is_convolution)


def all_plain(tree: Any) -> Any:
    """`tree` with plain arrays, and with its layers' classes from before `decoding`."""

    def is_decoding(node: Any) -> bool:
        return isinstance(node, eqx.Module) and "stands_for" in vars(type(node))

    def plain(node: Any) -> Any:
        node = with_arrays(node)
        return _new(type(node).stands_for, vars(node)) if is_decoding(node) else node

    return jax.tree.map(plain, tree, is_leaf=lambda node: is_coded(node) or is_decoding(node))

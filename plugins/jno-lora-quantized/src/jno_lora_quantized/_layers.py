"""Convolutions with quantised kernels: subclasses whose calls decode the kernel.

They are needed because `W @ x` of a linear layer calls a method of `W`, but JAX's convolution takes
only arrays.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from jno.lora.extending import is_coded, with_arrays
from jno_lora_zoo import KernelLayer

from ._plan import weight_kind


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """The convolution of `frame`, a layer without arrays and bias, with a kernel."""

    frame: PyTree

    def __call__(self, kernel: Array, x: Array) -> Array:
        return eqx.tree_at(lambda m: m.weight, self.frame, kernel)(x)


@functools.cache
def _decoding(cls: type) -> type:
    """`cls`, whose call also works with a coded weight."""

    def call(self: PyTree, *args: PyTree, **kwargs: PyTree) -> PyTree:
        is_plain = len(args) == 1 and kwargs.keys() <= {"key"}
        if cls.__module__.partition(".")[0] != "equinox" or not is_plain:
            return cls.__call__(with_arrays(self), *args, **kwargs)  # more than a convolution
        if not is_coded(self.weight):
            return cls.__call__(self, *args, **kwargs)
        frame = copy.copy(eqx.filter(self, eqx.is_array, inverse=True))
        object.__setattr__(frame, "use_bias", False)
        y = self.weight.applied(_Convolution(frame), *args)
        return y if self.bias is None else y + self.bias

    def reduce(self: eqx.Module) -> tuple[object, ...]:
        return _with_class, (cls, vars(self))

    members = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"__call__": call, "__reduce__": reduce, "stands_for": cls}
    return type(cls)(cls.__name__, (cls,), members)


def _with_class(cls: type, fields: Mapping[str, PyTree]) -> PyTree:
    return _new(_decoding(cls), fields)


def _new(cls: type, fields: Mapping[str, PyTree]) -> PyTree:
    """A layer of a class with these fields, made without its constructor."""
    layer = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(layer, name, value)
    return layer


def decoding(tree: PyTree) -> PyTree:
    """`tree`, whose convolutions with coded kernels get a call that decodes."""

    def is_convolution(node: object) -> bool:
        kind = weight_kind(node) if is_coded(getattr(node, "weight", None)) else None
        return kind is not None and issubclass(kind, KernelLayer)

    def with_call(node: PyTree) -> PyTree:
        return _with_class(type(node), vars(node)) if is_convolution(node) else node

    return jax.tree.map(with_call, tree, is_leaf=is_convolution)


def all_plain(tree: PyTree) -> PyTree:
    """`tree` with plain arrays, and with its layers' classes from before `decoding`."""

    def is_decoding(node: object) -> bool:
        return isinstance(node, eqx.Module) and "stands_for" in vars(type(node))

    def plain(node: PyTree) -> PyTree:
        node = with_arrays(node)
        return _new(type(node).stands_for, vars(node)) if is_decoding(node) else node

    return jax.tree.map(plain, tree, is_leaf=lambda node: is_coded(node) or is_decoding(node))

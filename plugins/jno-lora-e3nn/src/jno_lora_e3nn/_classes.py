"""The layer classes of e3nn-jax and nequix, recognised without importing these libraries."""

import abc
from typing import Any


class _Named(abc.ABCMeta):
    """The metaclass of a class that stands for the class with a given module and name.

    A plugin is loaded for every model, but e3nn-jax takes seconds to import, and a model with one
    of its layers has already imported it. `functools.singledispatch` works with such classes, too.
    """

    names: frozenset[tuple[str, str]]

    def __subclasscheck__(cls, subclass: type) -> bool:
        mro = getattr(subclass, "__mro__", ())
        return any((c.__module__, c.__name__) in cls.names for c in mro) or subclass is cls

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))


class E3nnLinear(metaclass=_Named):
    """`e3nn_jax.equinox.Linear` and its subclasses."""

    irreps_in: Any
    irreps_out: Any
    linear_type: Any
    _weights: Any

    names = frozenset({("e3nn_jax._src.linear_equinox", "Linear")})


class NequixLinear(metaclass=_Named):
    """`nequix.model.Linear`, the layers of the radial networks, and its subclasses."""

    weights: Any

    names = frozenset({("nequix.model", "Linear")})

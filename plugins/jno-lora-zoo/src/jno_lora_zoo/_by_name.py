"""Classes of other libraries, recognised without importing the libraries."""

import abc
import functools
from typing import Any


class ByName(abc.ABCMeta):
    """The metaclass of a class that stands for the classes with these modules and names.

    A plugin is loaded for every model, but the library of its layers may take seconds to import,
    and a model with such a layer has imported it already. `functools.singledispatch` works with
    such classes, too.
    """

    names: frozenset[tuple[str, str]]

    def __subclasscheck__(cls, subclass: type) -> bool:
        mro = getattr(subclass, "__mro__", ())
        return any((c.__module__, c.__name__) in cls.names for c in mro) or subclass is cls

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.__subclasscheck__(type(instance))


@functools.singledispatch
def plain_layer(layer: Any) -> Any:
    """A layer of another library with plain arrays: its `weight` as `eqx.nn` lays it out.

    Libraries whose files know only such layers ask for it. It returns `layer` itself unless the
    plugin of the library has registered the layer's class. The weight keeps the axes of a stack. A
    linear layer has `out_features` and `in_features`, and an embedding `num_embeddings` and
    `embedding_size`.
    """
    return layer

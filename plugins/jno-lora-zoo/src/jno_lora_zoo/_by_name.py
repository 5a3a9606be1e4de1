"""Classes of other libraries, recognised without importing the libraries."""

import abc


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

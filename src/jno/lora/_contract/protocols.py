"""Protocols of layers by their attributes, for layers of Equinox and of other libraries."""

from typing import Any, Protocol, runtime_checkable


class _ByAttributes(type(Protocol)):
    """`isinstance` looks up an object's attributes, on every interpreter.

    Since Python 3.12, the `isinstance` of protocols does not see attributes that come from
    `__getattr__`, by which an adapter provides the attributes of its layer.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        if super().__instancecheck__(instance):
            return True
        if not cls.__dict__.get("_is_protocol", False):  # a class that inherits the protocol
            return False
        return callable(instance) and all(hasattr(instance, name) for name in cls.__annotations__)


@runtime_checkable
class LinearLike(Protocol, metaclass=_ByAttributes):
    """A layer that looks like `eqx.nn.Linear`: `weight` is `(out_features, in_features)`.

    A feature count may be `"scalar"`, as in Equinox. The layer may accept leading batch axes.
    """

    weight: Any
    in_features: Any
    out_features: Any

    def __call__(self, x: Any) -> Any:
        """Apply the layer."""
        ...


@runtime_checkable
class ConvLike(Protocol, metaclass=_ByAttributes):
    """A layer that looks like `eqx.nn.Conv`: `weight` is `(out, in / groups, *kernel_size)`."""

    weight: Any
    in_channels: Any
    out_channels: Any

    def __call__(self, x: Any) -> Any:
        """Apply the layer."""
        ...

"""The registry: which adapters there are, and where they come from."""

from ._discovery import normalise
from ._records import PluginRecord, RegisteredWrapper
from ._registry import Registry, default_registry, refresh, register, registered

__all__ = [
    "PluginRecord",
    "RegisteredWrapper",
    "Registry",
    "default_registry",
    "normalise",
    "refresh",
    "register",
    "registered",
]

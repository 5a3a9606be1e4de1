"""The registry: which adapters there are, and where they come from."""

from ._discovery import normalise
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper
from ._registry import Registry, default_registry, refresh, register, registered

__all__ = [
    "IN_PROCESS",
    "PluginRecord",
    "RegisteredWrapper",
    "Registry",
    "default_registry",
    "normalise",
    "refresh",
    "register",
    "registered",
]

"""The registry: which adapters there are, and where they come from."""

from ._discovery import find_plugins_of, normalise
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper
from ._registry import Registry, default_registry, refresh, register, registered

__all__ = [
    "IN_PROCESS",
    "PluginRecord",
    "RegisteredWrapper",
    "Registry",
    "default_registry",
    "find_plugins_of",
    "normalise",
    "refresh",
    "register",
    "registered",
]

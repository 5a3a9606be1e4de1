"""The registry: which adapters there are, and where they come from."""

from ._catalog import methods_of, squash
from ._hookspecs import API_VERSION, ENTRY_POINT_GROUP, hookimpl
from ._plugins import FIRST_PARTY, ZOO_DISTRIBUTION, names_in, normalise
from ._records import BROKEN, IN_PROCESS, PluginRecord, RegisteredWrapper, why_unusable
from ._registry import Registry, default_registry, refresh, register, registered

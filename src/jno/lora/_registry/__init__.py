"""The registry: which adapters there are, and where they come from."""

from ._catalog import methods_of
from ._hookspecs import API_VERSION, hookimpl
from ._plugins import normalise
from ._records import BROKEN, IN_PROCESS, PluginRecord, RegisteredWrapper, why_unusable
from ._registry import Registry, default_registry, refresh, register, registered
from ._zoo_names import FIRST_PARTY, ZOO_DISTRIBUTION, ZOO_METHODS, ZOO_NAMES, squash

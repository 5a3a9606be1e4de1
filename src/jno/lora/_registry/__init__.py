"""The registry: which adapters exist, and where they come from."""

from .._contract import normalise_word
from ._hookspecs import ENTRY_POINT_GROUP, hookimpl
from ._inside_jno import call_inside_jno
from ._plugins import (
    BROKEN,
    IN_PROCESS,
    ClassesByName,
    LazyAdapter,
    PluginRecord,
    RegisteredWrapper,
    blocked_names,
    first_party,
    how_to_block,
    normalise,
    why_unusable,
)
from ._registry import Registry, default_registry, refresh, register, registered

"""The plugins that were found and loaded since a refresh.

A plugin is loaded outside of any lock, because its code may do anything. Threads may load a plugin
at the same time: Python makes them wait for its import, and the first record that is published
wins.
"""

import logging
import os
import threading
from collections.abc import Hashable, Sequence

from .._errors import PluginError, warn
from ._catalog import Catalog
from ._plugins import InstalledPlugin, complaint_about, find_plugins, load
from ._records import BROKEN, PluginRecord

_LOG = logging.getLogger("jno.lora.plugins")

# Held only to replace a catalog by another. A signal handler may ask meanwhile, so it is an RLock.
LOCK = threading.RLock()


# `loading`: the identities of the plugins that this thread loads, whose hooks may ask for plugins.
_THREAD = threading.local()


class Generation:
    """All that is known since a refresh. A question keeps to one, so a refresh need not wait."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._found: dict[str | None, tuple[InstalledPlugin, ...]] = {}

    def find(self, distribution: str | None = None) -> tuple[InstalledPlugin, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        plugins = self._found.get(distribution) or find_plugins(distribution)
        self._found[distribution] = plugins
        return plugins

    def publish(self, identity: Hashable, record: PluginRecord) -> None:
        with LOCK:
            self.catalog = self.catalog.having(identity, record)

    def load(self, wanted: Sequence[InstalledPlugin], strict: bool | None) -> Catalog:
        """The catalog once these plugins are loaded. Warns about a plugin that fails or is slow.

        **Raises:** `PluginError` for a broken plugin if `strict`, by default `JNO_LORA_STRICT`.
        """
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        published = [plugin for plugin in wanted if self._load(plugin)]
        for plugin in wanted:  # after all are loaded: a warning may be turned into an error
            record = self.catalog.plugins.get(plugin.identity)
            complaint = record and complaint_about(record)
            if record and strict and record.status in BROKEN:
                raise PluginError(complaint) from record.error
            if complaint and plugin in published:
                warn(complaint)
        return self.catalog

    def _load(self, plugin: InstalledPlugin) -> bool:
        """Load a plugin unless it is loaded. Returns whether this call published its record."""
        before: frozenset[Hashable] = getattr(_THREAD, "loading", frozenset())
        if plugin.identity in self.catalog.plugins or plugin.identity in before:
            return False
        _LOG.debug("loading %s (entry point %r)", plugin.distribution, plugin.name)
        # Ctrl-C may interrupt any call. A plain assignment always happens.
        try:
            _THREAD.loading = before | {plugin.identity}
            record = load(plugin)
        finally:
            _THREAD.loading = before
        if record is None:
            return False
        _LOG.debug("%r, in %.3f s", record, record.seconds)
        with LOCK:
            if plugin.identity in self.catalog.plugins:
                return False
            self.publish(plugin.identity, record)
            return True

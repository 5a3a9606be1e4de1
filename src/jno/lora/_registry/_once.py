"""Load each plugin once, in the thread that asks first; other threads that need it wait.

There is one lock. It is held while a result is published, and never while code of a plugin runs.
"""

import logging
import os
import sys
import threading
from collections.abc import Hashable, Sequence
from types import FrameType

from .._errors import PluginError, warn
from ._catalog import Catalog
from ._plugins import Found, complaint_about, find_plugins, load
from ._records import BROKEN, PluginRecord

_LOG = logging.getLogger("jno.lora.plugins")

# For all registries, since a plugin may ask another one. A signal handler may ask under the lock.
LOCK = threading.RLock()
_WAITING: "dict[int, _Load]" = {}  # the load that a thread waits for
_TURN = 0.05  # seconds; after each, a waiting thread looks whether waiting can still end


class _Load:
    """A plugin that a thread is loading. Others wait for `running`, which that thread holds."""

    def __init__(self):
        self.thread = threading.get_ident()
        self.running = threading.Lock()
        self.has_ended = False


class Generation:
    """All that is known since a refresh. A question keeps to one, so a refresh need not wait."""

    def __init__(self, catalog: Catalog, former: "Generation | None" = None):
        self.catalog = catalog
        self._found: dict[str | None, tuple[Found, ...]] = {}
        # The latest load of each plugin. A load may go on while the registry is refreshed.
        self._loading: dict[Hashable, _Load] = {} if former is None else former._loading

    def find(self, distribution: str | None = None) -> tuple[Found, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        found = self._found.get(distribution) or find_plugins(distribution)
        self._found[distribution] = found
        return found

    def publish(self, identity: Hashable, record: PluginRecord) -> None:
        """Add a plugin to the catalog, in place of a former one with that identity."""
        with LOCK:
            self.catalog = self.catalog.having(identity, record)

    def load(self, wanted: Sequence[Found], strict: bool | None) -> Catalog:
        """The catalog once these plugins are loaded. Warns of those that fail, or take long.

        **Raises:** `PluginError` for a broken one if `strict`, by default `JNO_LORA_STRICT`.
        """
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        missing = [found for found in wanted if found.identity not in self.catalog.plugins]
        loaded = [found for found in missing if self._load_once(found)]
        for found in wanted:  # last: a warning may be turned into an error
            record = self.catalog.plugins.get(found.identity)
            complaint = record and complaint_about(record)
            if record and strict and record.status in BROKEN:
                raise PluginError(complaint) from record.error
            if complaint and found in loaded:
                warn(complaint)
        return self.catalog

    def _load_once(self, found: Found) -> bool:
        """Load a plugin, unless another thread does. Returns whether this thread did.

        A thread waits for another one that is loading the plugin, unless waiting could never end:
        if this thread is itself loading or importing the plugin, or the other one waits for this
        thread, directly or through a third.
        """
        mine = _Load()
        with mine.running:
            # Ctrl-C may interrupt any call. A plain assignment always happens.
            try:
                while (other := self._claim(found, mine)) is not mine:
                    if other is None:
                        return False
                    if other.running.acquire(timeout=_TURN):
                        other.running.release()
                _LOG.debug("loading %s (entry point %r)", found.distribution, found.name)
                record = load(found)
                _LOG.debug("%r, in %.3f s", record, record.seconds)
                self.publish(found.identity, record)
                return True
            finally:
                mine.has_ended = True

    def _claim(self, found: Found, mine: _Load) -> _Load | None:
        """`mine` if this thread has to load the plugin, a load to wait for, or `None` to go on."""
        is_importing = found.module in _imports(sys._getframe())[0]
        with LOCK:
            _WAITING.pop(mine.thread, None)
            if is_importing or found.identity in self.catalog.plugins:
                return None
            other = self._loading.get(found.identity)
            if other is None or other.has_ended:
                self._loading[found.identity] = mine
                return mine
            if _waits_for(mine.thread, other.thread):
                return None
            _WAITING[mine.thread] = other
            return other


def _waits_for(thread: int, other: int | None) -> bool:
    """Whether a thread is `thread`, or waits for it: for a plugin or an import, through others."""
    imports = {it: _imports(frame) for it, frame in sys._current_frames().items()}
    seen: set[int] = set()
    while other is not None and other not in seen:
        if other == thread:
            return True
        seen.add(other)
        load = _WAITING.get(other)
        if load is not None and not load.has_ended:
            other = load.thread
        else:
            _, asked = imports.get(other, (set(), set()))
            importers = (it for it, (running, _) in imports.items() if running & asked)
            other = next((it for it in importers if it != other), None)
    return False


def _imports(frame: FrameType | None) -> tuple[set[object], set[object]]:
    """The modules whose bodies run in a thread, and those that it imports, or waits for."""
    running, asked = set[object](), set[object]()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            running.add(frame.f_globals.get("__name__"))
        elif frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            asked.add(frame.f_locals.get("name", ""))
        frame = frame.f_back
    return running, asked

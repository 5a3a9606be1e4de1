"""Load each plugin once, in the thread that asks first; other threads that need it wait.

There is one lock. It is held while a result is published, and never while code of a plugin runs.
"""

import logging
import os
import sys
import threading
from collections.abc import Hashable, Iterable
from types import FrameType

from .._errors import PluginError, warn
from ._catalog import Catalog
from ._discovery import Found, find_plugins
from ._loading import complaint_about, load
from ._records import PluginRecord

_LOG = logging.getLogger("jno.lora.plugins")

# For all registries, since a plugin may ask another one. A signal handler may ask under the lock.
_LOCK = threading.RLock()
_WAITING: "dict[int, _Load]" = {}  # the load that a thread waits for
_TURN = 0.05  # seconds; after each, a waiting thread looks whether waiting can still end


class Generation:
    """All that is known since a refresh. A question keeps to one, so a refresh need not wait."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._found: dict[str | None, tuple[Found, ...]] = {}

    def find(self, distribution: str | None = None) -> tuple[Found, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        found = self._found.get(distribution)
        if found is None:
            found = find_plugins(distribution)
            if found or distribution is None:
                self._found[distribution] = found
        return found


class _Load:
    """A plugin that a thread is loading. Others wait for `running`, which that thread holds."""

    def __init__(self):
        self.thread = threading.get_ident()
        self.running = threading.Lock()
        self.has_ended = False


class Loader:
    """Loads plugins, and publishes the catalog of those that are loaded.

    A thread that needs a plugin which another thread is loading waits for it. It goes on without
    that plugin only where waiting could never end:

    - this thread is loading or importing the plugin, which asks for itself, or for all;
    - the other thread waits for this one, directly or through a third: for a plugin that this
      thread is loading, or for a module that it is importing.
    """

    def __init__(self, catalog: Catalog):
        self.now = Generation(catalog)
        self._loading: dict[Hashable, _Load] = {}

    def register(self, identity: Hashable, record: PluginRecord) -> None:
        """Add a plugin of this process, in place of the former one with that identity."""
        with _LOCK:
            self.now.catalog = self.now.catalog.having(identity, record)

    def refresh(self) -> None:
        """Begin a generation that knows only the plugins of this process."""
        with _LOCK:
            self.now = Generation(self.now.catalog.of_this_process())

    def load(self, wanted: Iterable[Found], now: Generation, strict: bool | None) -> Catalog:
        """The catalog once these plugins are loaded. Warns of those that fail, or take long.

        **Raises:** `PluginError` for one that fails if `strict`, by default `JNO_LORA_STRICT`.
        """
        missing = [found for found in wanted if found.identity not in now.catalog.plugins]
        if strict is None and missing:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        complaints = [self._load_once(found, now, bool(strict)) for found in missing]
        for complaint in filter(None, complaints):  # last: a warning may be turned into an error
            warn(complaint)
        return now.catalog

    def _load_once(self, found: Found, now: Generation, strict: bool) -> str | None:
        """Load a plugin, unless another thread does. Returns the complaint about it."""
        mine = _Load()
        with mine.running:
            # Ctrl-C may interrupt any call. A plain assignment always happens.
            try:
                while (other := self._claim(found, now, mine)) is not mine:
                    if other is None:
                        return None
                    if other.running.acquire(timeout=_TURN):
                        other.running.release()
                return self._load(found, now, strict)
            finally:
                mine.has_ended = True

    def _claim(self, found: Found, now: Generation, mine: _Load) -> _Load | None:
        """`mine` if this thread has to load the plugin, a load to wait for, or `None` to go on."""
        is_importing = found.module in _imports(sys._getframe())[0]
        with _LOCK:
            _WAITING.pop(mine.thread, None)
            if is_importing or found.identity in now.catalog.plugins:
                return None
            other = self._loading.get(found.identity)
            if other is None or other.has_ended:
                self._loading[found.identity] = mine
                return mine
            if _waits_for(mine.thread, other.thread):
                return None
            _WAITING[mine.thread] = other
            return other

    def _load(self, found: Found, now: Generation, strict: bool) -> str | None:
        _LOG.debug("loading %s (entry point %r)", found.distribution, found.name)
        record = load(found)
        _LOG.debug("%r, in %.3f s", record, record.seconds)
        complaint = complaint_about(record)
        if strict and record.status in ("failed", "incompatible"):
            # Not published, so that the next question meets the same error.
            raise PluginError(complaint) from record.error
        with _LOCK:
            now.catalog = now.catalog.having(found.identity, record)
        return complaint


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
    """The modules with a body that runs in a thread, and those that it asks Python to import.

    One that it asks for while the body runs in another thread is one that it waits for.
    """
    running, asked = set[object](), set[object]()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            running.add(frame.f_globals.get("__name__"))
        elif frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            asked.add(frame.f_locals.get("name", ""))
        frame = frame.f_back
    return running, asked

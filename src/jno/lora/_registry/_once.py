"""Load each plugin once, in the thread that asks first; other threads that need it wait.

There is one lock. It is held while a result is published, and never while code of a plugin runs.
"""

import logging
import os
import sys
import threading
from collections.abc import Hashable, Iterable

from .._errors import PluginError, warn
from ._catalog import Catalog
from ._discovery import Found, find_plugins
from ._loading import complaint_about, load
from ._records import PluginRecord

_LOG = logging.getLogger("jno.lora.plugins")

# For all registries, since a plugin may ask another one. A signal handler may ask under the lock.
_LOCK = threading.RLock()
_WAITING: "dict[int, _Load]" = {}  # the load that a thread waits for


class Generation:
    """All that is known since the last refresh.

    A question keeps the generation that it began with, so a refresh never has to wait for it.
    """

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._found: dict[str | None, tuple[Found, ...]] = {}

    def find(self, distribution: str | None = None) -> tuple[Found, ...]:
        """As `find_plugins`, once. One that is missing is looked for again: it may be installed."""
        if distribution not in self._found:
            found = find_plugins(distribution)
            if distribution is not None and not found:
                return ()
            self._found[distribution] = found
        return self._found[distribution]


class _Load:
    """A plugin that a thread is loading. Others wait for `running`, which that thread holds."""

    def __init__(self):
        self.thread = threading.get_ident()
        self.running = threading.Lock()
        self.has_ended = False


class Loader:
    """Loads plugins, and publishes the catalog of those that are loaded.

    A thread that needs a plugin which another thread is loading waits for it. It goes on without
    that plugin where waiting could never end:

    - this thread is loading or importing the plugin, which asks for itself, or for all;
    - the other thread waits, directly or through a third, for a plugin that this thread is loading;
    - this thread is importing the plugin's package, and the other thread may wait for that import.
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
        """The catalog once these plugins are loaded. Warns of those that fail.

        **Raises:** `PluginError` for a plugin that fails if `strict`, which is by default what
        `JNO_LORA_STRICT` says.
        """
        missing = [found for found in wanted if found.identity not in now.catalog.plugins]
        if strict is None and missing:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        complaints = [self._load_once(found, now, bool(strict)) for found in missing]
        for complaint in filter(None, complaints):  # last: a warning may be turned into an error
            warn(complaint)
        return now.catalog

    def _load_once(self, found: Found, now: Generation, strict: bool) -> str | None:
        """Load a plugin, unless another thread does. Returns the complaint about it, if any."""
        mine = _Load()
        with mine.running:
            # Ctrl-C may come at any call, so only a plain assignment is sure to happen.
            try:
                while (other := self._claim(found, now, mine)) is not mine:
                    if other is None:
                        return None
                    with other.running:
                        pass  # it has ended
                return self._load(found, now, strict)
            finally:
                mine.has_ended = True

    def _claim(self, found: Found, now: Generation, mine: _Load) -> _Load | None:
        """`mine` if this thread has to load the plugin, a load to wait for, or `None` to go on."""
        importing = _importing_here()
        is_inside = any(f"{found.module}.".startswith(f"{name}.") for name in importing)
        with _LOCK:
            _WAITING.pop(mine.thread, None)
            if found.identity in now.catalog.plugins or found.module in importing:
                return None
            other = self._loading.get(found.identity)
            if other is None or other.has_ended:
                self._loading[found.identity] = mine
                return mine
            if is_inside or _waits_for(mine.thread, other):
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


def _waits_for(thread: int, load: _Load | None) -> bool:
    """Whether a load is one of `thread`, or waits (through others) for one of `thread`."""
    while load is not None and not load.has_ended:
        if load.thread == thread:
            return True
        load = _WAITING.get(load.thread)
    return False


def _importing_here() -> set[str]:
    """The modules that this thread is importing: those with a body that runs in it."""
    frame, modules = sys._getframe(), set[str]()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            modules.add(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return modules

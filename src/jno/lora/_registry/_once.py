"""Load each plugin once, in the thread that asks first; other threads that need it wait.

There is one lock. It is held while a result is published, and never while code of a plugin runs.
"""

import dataclasses
import logging
import sys
import threading
from collections.abc import Hashable, Iterable

from .._errors import PluginError, warn
from ._catalog import Catalog
from ._discovery import Found, Policy
from ._loading import complaint_about, load
from ._records import Plugin, PluginRecord

_LOG = logging.getLogger("jno.lora.plugins")


class Generation:
    """All that is known since the last refresh.

    A question keeps the generation that it began with, so a refresh never has to wait for it.
    """

    def __init__(self, catalog: Catalog):
        self.catalog = catalog


@dataclasses.dataclass(frozen=True)
class _Load:
    """A plugin that is being loaded, as long as `running` is held.

    Leaving the `with` block is enough to end it. So Ctrl-C, which may come between any two
    statements, never leaves a plugin behind that counts as being loaded.
    """

    thread: int
    running: threading.Lock


class Loader:
    """Loads plugins, and publishes the catalog of those that are loaded.

    A thread that needs a plugin which another thread is loading waits for it. It goes on without
    that plugin where waiting could never end:

    - the plugin is loaded further up in this thread: it asks for itself, or for all;
    - the other thread waits, directly or through a third, for a plugin that this thread is loading;
    - this thread is importing the plugin's module, so that the other one waits for the import.
    """

    def __init__(self, catalog: Catalog):
        self.now = Generation(catalog)
        self._lock = threading.RLock()  # a signal handler may ask while it is held
        self._loading: dict[Hashable, _Load] = {}
        self._waiting: dict[int, _Load] = {}  # by thread

    def register(self, plugin: Plugin) -> None:
        """Add a plugin of this process, in place of one with the same identity."""
        with self._lock:
            self.now.catalog = self.now.catalog.having(plugin)

    def refresh(self) -> None:
        """Begin a generation that knows only the plugins of this process."""
        with self._lock:
            self.now = Generation(self.now.catalog.of_this_process())

    def load(self, wanted: Iterable[Found], generation: Generation, strict: bool | None) -> None:
        """Load those plugins that are not loaded yet, and warn of those that fail.

        **Raises:** `PluginError` for a plugin that fails if `strict`, which is by default what
        `JNO_LORA_STRICT` says.
        """
        policy = Policy.from_environment()
        if strict is not None:
            policy = dataclasses.replace(policy, strict=strict)
        records = [self._load_once(found, generation, policy) for found in wanted]
        # Last, because a warning may be turned into an error.
        for record in records:
            if record is not None and (complaint := complaint_about(record)):
                warn(complaint)

    def complete(
        self, distribution: str | None, found: Iterable[Found], generation: Generation
    ) -> None:
        """Note that a distribution, or everything, need not be looked for again.

        Not if a plugin is still being loaded, nor for a distribution that may be installed later.
        """
        with self._lock:
            catalog = generation.catalog
            identities = [plugin.identity for plugin in found]
            if catalog.plugins.keys() >= set(identities) and (identities or distribution is None):
                complete = catalog.complete | {distribution}
                generation.catalog = dataclasses.replace(catalog, complete=complete)

    def _load_once(
        self, found: Found, generation: Generation, policy: Policy
    ) -> PluginRecord | None:
        """The record of a plugin if this call loaded it, else `None`."""
        mine = _Load(threading.get_ident(), threading.Lock())
        with mine.running:
            while other := self._claim(found, generation, mine):
                if other is mine:
                    break
                with other.running:
                    pass  # it has ended
            else:
                return None
            _LOG.debug("loading %s (entry point %r)", found.distribution, found.name)
            plugin = load(found, policy)
            record = plugin.record
            _LOG.debug("%r, in %.3f s", record, record.seconds)
            if policy.strict and record.status in ("failed", "incompatible"):
                # Not published, so that the next question meets the same error.
                raise PluginError(complaint_about(record)) from record.error
            with self._lock:
                generation.catalog = generation.catalog.having(plugin)
        return record

    def _claim(self, found: Found, generation: Generation, mine: _Load) -> _Load | None:
        """`mine` if this thread is to load the plugin now, another load to wait for, or `None`."""
        with self._lock:
            self._waiting.pop(mine.thread, None)
            other = self._loading.get(found.identity)
            if found.identity in generation.catalog.plugins:
                return None
            if other is None or not other.running.locked():
                self._loading[found.identity] = mine
                return mine
            if self._waits_for(mine.thread, other) or _is_importing(found.module):
                return None
            self._waiting[mine.thread] = other
            return other

    def _waits_for(self, thread: int, load: _Load | None) -> bool:
        """Whether a load is one of `thread`, or waits (through others) for one of `thread`."""
        while load is not None and load.running.locked():
            if load.thread == thread:
                return True
            load = self._waiting.get(load.thread)
        return False


def _is_importing(module: str) -> bool:
    """Whether this thread runs the body of a module, or of a package that the module is in."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "<module>" and f"{module}.".startswith(f"{name}."):
            return True
        frame = frame.f_back
    return False

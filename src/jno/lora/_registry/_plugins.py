"""The plugins of a registry: loaded when they are asked for, by as many threads as ask."""

import logging
import threading
import warnings
from typing import Any

import pluggy

from .._caches import forget
from .._contract import check_contract
from .._errors import JnoLoraWarning, PluginError
from ._discovery import Found, Policy, find_plugins, find_plugins_of
from ._hooks import former_of, manager_without_plugins, name_of, take_in
from ._loading import load
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper
from ._snapshot import Snapshot
from ._waiting import slow_plugin
from ._zoo_names import ZOO_DISTRIBUTION

_LOG = logging.getLogger("jno.lora.plugins")


class Plugins:
    """What is loaded and registered so far is in `snapshot`; each question may load more.

    There are three locks. Whoever takes several takes them in this order: `_lock` (loads and
    registers), `_zoo_lock` (loads the zoo), `_publishing` (replaces the snapshot). Code of plugins
    runs under the first two, and may ask for more plugins; it never runs under the last.
    """

    def __init__(self, *, discover: bool):
        self._discover = discover
        self._lock = threading.RLock()
        self._zoo_lock = threading.RLock()
        self._publishing = threading.RLock()
        self.manager = manager_without_plugins()
        self.snapshot = Snapshot(discover=discover)
        self._loaded: dict[tuple[str, str, str], PluginRecord] = {}
        self._in_process: list[tuple[Any, PluginRecord]] = []  # with what was registered
        self._loading: set[tuple[str, str, str]] = set()
        self._zoo_sought = self._all_loaded = False

    def with_zoo(self, strict: bool | None = None) -> Snapshot:
        """What there is once the zoo is loaded, if it is installed."""
        # What is returned is what was looked at: a refresh may replace it at any time.
        snapshot = self.snapshot
        if self._discover and not snapshot.zoo_sought:
            with self._zoo_lock:
                if not self._zoo_sought:
                    self._load(find_plugins_of(ZOO_DISTRIBUTION), strict)
                    with self._publishing:
                        self._zoo_sought = not self._is_loading(ZOO_DISTRIBUTION)
                        self._publish()
                snapshot = self.snapshot
        return snapshot

    def with_all(self, strict: bool | None = None) -> Snapshot:
        """What there is once everything that is installed is loaded."""
        snapshot = self.snapshot
        if self._discover and not snapshot.all_loaded:
            with self._lock:
                if not self._all_loaded:
                    # The zoo first, under its own lock. A thread that imports a plugin by itself,
                    # and in it asks for `LoRALinear`, must not wait for one that waits for that
                    # import.
                    self.with_zoo(strict)
                    self._load(find_plugins(), strict)
                    with self._publishing:
                        self._all_loaded = not self._loading
                        self._publish()
                snapshot = self.snapshot
        return snapshot

    def with_those_of(self, distribution: str) -> Snapshot:
        """What there is once the plugins of this distribution are loaded."""
        if distribution == ZOO_DISTRIBUTION:
            return self.with_zoo()
        if self._discover and not self.snapshot.all_loaded:
            with self._lock:
                self._load(find_plugins_of(distribution), None)
        return self.snapshot

    def with_package(self, package: str) -> Snapshot:
        """What there is once those plugins are loaded whose modules lie in this package."""
        if self._discover:
            found = tuple(plugin for plugin in find_plugins() if plugin.package == package)
            with self._lock:
                self._load(found, strict=False)
        return self.snapshot

    def hooks(self, name: str) -> list[pluggy.HookImpl]:
        """The implementations of a hook in the order in which they are asked.

        Pluggy asks what was registered last first. That is also the order here, but for installed
        plugins it is that of their names, whichever was loaded first.
        """
        place = {name_of(record): index for index, record in enumerate(self.snapshot.records)}

        def order(hook: pluggy.HookImpl) -> tuple[bool, bool, int]:
            return (hook.trylast, not hook.tryfirst, -place.get(hook.plugin_name, len(place)))

        last_first = getattr(self.manager.hook, name).get_hookimpls()[::-1]
        return sorted(last_first, key=order)

    def register(self, item: Any) -> None:
        """Add an adapter class, or the adapters and hooks of a plugin object."""
        with self._lock:
            if isinstance(item, type):
                check_contract(item)
                wrappers = (RegisteredWrapper(item, IN_PROCESS, ""),)
                formers = [former for former, _ in self._in_process if _is_again(item, former)]
            elif self.manager.is_registered(item):
                return
            else:
                former = former_of(item, self.manager)
                formers = [] if former is None else [former]
                wrappers = self._take_in_place_of(former, item)
            value = getattr(item, "__name__", repr(item))
            record = PluginRecord(value, IN_PROCESS, "", value, "loaded", wrappers=wrappers)
            with self._publishing:
                kept = [(i, r) for i, r in self._in_process if not any(i is f for f in formers)]
                self._in_process = [*kept, (item, record)]
                self._publish()

    def refresh(self) -> None:
        """Forget what was found, and what is remembered of its classes."""
        with self._lock, self._zoo_lock, self._publishing:
            manager = manager_without_plugins()
            for item, _ in self._in_process:
                if not isinstance(item, type):
                    manager.register(item)
            # Whoever asks meanwhile, without a lock, finds what was registered in this process.
            self.manager, self._loaded, self._loading = manager, {}, set()
            self._zoo_sought = self._all_loaded = False
            self._publish()
        forget()

    def _is_loading(self, distribution: str) -> bool:
        # A plugin that asks for the others while it is loaded is not one of those that are.
        return any(of == distribution for of, *_ in self._loading)

    def _load(self, found: tuple[Found, ...], strict: bool | None) -> None:
        policy = Policy.from_environment()
        strict = policy.strict if strict is None else strict
        complaints: list[str] = []
        for plugin in found:
            # The zoo has a lock of its own, here as well: whoever finds it loading, without having
            # waited for that lock, is asked from its import.
            with self._zoo_lock if plugin.distribution == ZOO_DISTRIBUTION else self._lock:
                complaint = self._load_one(plugin, policy, strict)
            complaints.extend(filter(None, [complaint]))
        # Last, because a warning may be turned into an error.
        for complaint in complaints:
            warnings.warn(complaint, JnoLoraWarning, stacklevel=2)

    def _load_one(self, plugin: Found, policy: Policy, strict: bool) -> str | None:
        """Load a plugin that is not loaded yet. Returns what to warn of, if anything."""
        # A plugin may ask for the registry while it is loaded: it gets the others.
        if plugin.identity in self._loaded or plugin.identity in self._loading:
            return None
        with self._publishing:  # others may look at the set
            self._loading.add(plugin.identity)
        try:
            record = load(plugin, self.manager, policy)
        finally:
            with self._publishing:
                self._loading.discard(plugin.identity)
        _LOG.debug("%r, in %.3f s", record, record.seconds)
        is_broken = record.status in ("failed", "incompatible")
        if is_broken and strict:  # not remembered: the next question meets the same error
            raise PluginError(_left_out(record)) from record.error
        with self._publishing:
            self._loaded[plugin.identity] = record
            self._publish()
        return _left_out(record) if is_broken else slow_plugin(record)

    def _take_in_place_of(self, former: Any, item: Any) -> tuple[RegisteredWrapper, ...]:
        """Register `item` for an object of the same name, which stays if `item` is refused."""
        if former is not None:
            self.manager.unregister(former)
        try:
            return take_in(item, self.manager, IN_PROCESS, "")
        except BaseException:
            if former is not None:
                self.manager.register(former)
            raise

    def _publish(self) -> None:
        """Replace the snapshot."""
        self.snapshot = Snapshot(
            tuple(self._loaded.values()),
            tuple(record for _, record in self._in_process),
            discover=self._discover,
            zoo_sought=self._zoo_sought,
            all_loaded=self._all_loaded,
        )


def _is_again(cls: type, former: Any) -> bool:
    """Whether this class is that one, defined again."""
    names = (cls.__module__, cls.__qualname__)
    return isinstance(former, type) and (former.__module__, former.__qualname__) == names


def _left_out(record: PluginRecord) -> str:
    return (
        f"The plugin {record.describe()} could not be loaded and is left out: "
        f"{type(record.error).__name__}: {record.error}"
    )

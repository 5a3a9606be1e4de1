"""The registry: lazy, isolated, deterministic."""

import dataclasses
import logging
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import pluggy

from .. import _hookspecs
from .._contract import LoRAWrapper
from .._contract_problems import check_contract
from .._errors import JnoLoraWarning, PluginError
from .._hookspecs import PROJECT
from .._zoo_names import DEFAULT_NAMES, FIRST_PARTY, ZOO_DISTRIBUTION, ZOO_NAMES
from ._discovery import Found, Policy, find_plugins, find_plugins_of
from ._loading import collect, load
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper
from ._snapshot import Snapshot, missing_zoo
from ._waiting import slow_plugin

_LOG = logging.getLogger("jno.lora.plugins")


class Registry:
    """Finds, loads and names adapters.

    Plugins load lazily: the defaults and the zoo's own names import only the zoo, explicit
    classes import nothing, and everything else (other names, variants, `"auto"`, listing) loads
    all installed plugins once. Every method is thread-safe.

    **Arguments:**

    - `discover`: whether to look for installed plugins. With `False` the registry holds only what
        is given to `register`, for applications that must not import what happens to be installed.
    """

    def __init__(self, *, discover: bool = True):
        self._discover = discover
        self._lock = threading.RLock()
        self._zoo_lock = threading.RLock()
        self._publishing = threading.RLock()
        self._manager = _manager_without_plugins()
        self._loaded: dict[tuple[str, str, str], PluginRecord] = {}
        self._in_process: list[PluginRecord] = []
        self._loading: set[tuple[str, str, str]] = set()
        self._zoo_sought = self._all_loaded = False
        self._snapshot = Snapshot()

    def records(self, *, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """One record per plugin found, loading all of them if that has not happened yet.

        `strict=False` never raises, whatever `JNO_LORA_STRICT` says: for tools that show what is
        broken.
        """
        return self._load_all(strict).records

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`: `LoRALinear` and `LoRAConv`. Imports only the zoo."""
        return tuple(self.zoo_class(name) for name in DEFAULT_NAMES)

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Imports only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        snapshot = self._load_zoo()
        for wrapper in snapshot.by_name.get(name, ()):
            return wrapper.cls
        snapshot.raise_if_unusable(ZOO_DISTRIBUTION, wanted=name)
        raise missing_zoo(name)

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for. See `Snapshot.resolve`."""
        if name in ZOO_NAMES:
            return (self.zoo_class(name),)
        return self._load_all().resolve(name)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`."""
        return self._load_all().auto()

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """Which plugin provides `cls`, as far as is known without loading anything."""
        return self._snapshot.provider(cls)

    def provider_of(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """Which plugin provides `cls`. Loads those of the package that defines it, if need be."""
        if self._discover and self.provider(cls) is None:
            self._load_only(
                tuple(plugin for plugin in find_plugins() if plugin.package == _package(cls)),
                strict=False,
            )
        return self.provider(cls)

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads nothing for the latter, else only what that distribution provides.

        **Raises:** `PluginError` if there is no such adapter, or it cannot be used.
        """
        if distribution is None:
            return self._snapshot.provided(IN_PROCESS, name)
        if distribution == ZOO_DISTRIBUTION:
            self._load_zoo()
        elif self._discover and not self._all_loaded:
            self._load_only(find_plugins_of(distribution))
        return self._snapshot.provided(distribution, name)

    def select(
        self, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
    ) -> type[LoRAWrapper] | None:
        """What the plugins' `jno_lora_select` hooks choose, or `None` if none of them does.

        **Raises:** `PluginError` if a hook fails, or chooses something that is not a candidate.
        """
        try:
            chosen = self._manager.hook.jno_lora_select(path=path, leaf=leaf, candidates=candidates)
        except Exception as err:
            raise PluginError(
                f"A `jno_lora_select` hook failed on the layer at {path!r}: "
                f"{type(err).__name__}: {err}"
            ) from err
        if chosen is not None and chosen not in candidates:
            raise PluginError(
                f"A `jno_lora_select` hook chose {chosen!r} for {path!r}, which is not among the "
                f"candidates {[c.__name__ for c in candidates]}. Return one of them, or None."
            )
        return chosen

    def register(self, item: Any) -> Any:
        """Register an adapter class, or an object with hook implementations, in this process.

        **Arguments:**

        - `item`: a `LoRAWrapper` subclass, or any object (a module, an instance) whose functions
            are marked with `jno.lora.hookimpl`. A class that is defined again under the same
            module and name (a notebook cell that ran twice) replaces the former one.

        **Returns:** `item`, so that this can be used as a class decorator.

        **Raises:** `WrapperError` if a class breaks the contract; `PluginError` if an object has
        no hook implementation.
        """
        with self._lock, self._publishing:
            if isinstance(item, type):
                check_contract(item)
                wrappers = (RegisteredWrapper(item, IN_PROCESS, ""),)
                self._forget_former(item)
            elif self._manager.is_registered(item):
                return item
            else:
                self._manager.register(item)
                if not self._manager.get_hookcallers(item):
                    self._manager.unregister(item)
                    raise PluginError(
                        f"{item!r} implements none of the hooks. Mark its functions "
                        "`jno_lora_wrappers` or `jno_lora_select` with `@jno.lora.hookimpl`."
                    )
                try:
                    wrappers = collect(item, self._manager, IN_PROCESS, "")
                except BaseException:
                    self._manager.unregister(item)
                    raise
            value = getattr(item, "__name__", repr(item))
            self._in_process.append(
                PluginRecord(value, IN_PROCESS, "", value, "loaded", wrappers=wrappers)
            )
            self._publish()
        return item

    def refresh(self) -> None:
        """Forget every plugin that was found, so that the next question looks again.

        What was registered in this process stays.
        Modules that Python has imported stay imported.
        """
        with self._lock, self._zoo_lock, self._publishing:
            manager = _manager_without_plugins()
            known = {id(p) for p in manager.get_plugins()}
            for name, plugin in self._manager.list_name_plugin():
                if plugin is not None and id(plugin) not in known and "/" not in name:
                    manager.register(plugin, name=name)
            # Whoever asks meanwhile, without a lock, finds what was registered in this process.
            self._manager, self._loaded, self._loading = manager, {}, set()
            self._zoo_sought = self._all_loaded = False
            self._publish()

    def _load_zoo(self, strict: bool | None = None) -> Snapshot:
        # What is returned is what was looked at: a refresh may replace it at any time.
        snapshot = self._snapshot
        if self._discover and not snapshot.zoo_sought:
            with self._zoo_lock:
                if not self._zoo_sought:
                    self._load(find_plugins_of(ZOO_DISTRIBUTION), strict)
                    with self._publishing:
                        self._zoo_sought = True
                        self._publish()
                snapshot = self._snapshot
        return snapshot

    def _load_all(self, strict: bool | None = None) -> Snapshot:
        snapshot = self._snapshot
        if self._discover and not snapshot.all_loaded:
            with self._lock:
                if not self._all_loaded:
                    # The zoo first, under its own lock. A thread that imports a plugin by itself,
                    # and in it asks for `LoRALinear`, must not wait for one that waits for that
                    # import.
                    self._load_zoo(strict)
                    self._load(find_plugins(), strict)
                    with self._publishing:
                        self._all_loaded = True
                        self._publish()
                snapshot = self._snapshot
        return snapshot

    def _load_only(self, found: tuple[Found, ...], strict: bool | None = None) -> None:
        with self._lock:
            self._load(found, strict)

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
        self._loading.add(plugin.identity)
        try:
            record = load(plugin, self._manager, policy)
        finally:
            self._loading.discard(plugin.identity)
        _LOG.debug("%r, in %.3f s", record, record.seconds)
        is_broken = record.status in ("failed", "incompatible")
        if is_broken and strict:  # not remembered: the next question meets the same error
            raise PluginError(_left_out(record)) from record.error
        with self._publishing:
            self._loaded[plugin.identity] = record
            self._publish()
        return _left_out(record) if is_broken else slow_plugin(record)

    def _forget_former(self, cls: type) -> None:
        def is_former(record: PluginRecord) -> bool:
            return len(record.wrappers) == 1 and all(
                (w.cls.__module__, w.cls.__qualname__) == (cls.__module__, cls.__qualname__)
                for w in record.wrappers
            )

        self._in_process = [r for r in self._in_process if not is_former(r)]

    def _publish(self) -> None:
        """Replace the snapshot, in an order that does not depend on what was asked first."""
        order = sorted(
            self._loaded.values(),
            key=lambda r: (r.distribution not in FIRST_PARTY, r.distribution, r.name),
        )
        snapshot = Snapshot((*order, *self._in_process))
        self._snapshot = Snapshot(
            tuple(_with_conflicts(r, snapshot) for r in snapshot.records),
            zoo_sought=self._zoo_sought,
            all_loaded=self._all_loaded,
        )


def _manager_without_plugins() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_hookspecs)
    return manager


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _left_out(record: PluginRecord) -> str:
    return (
        f"The plugin {record.describe()} could not be loaded and is left out: "
        f"{type(record.error).__name__}: {record.error}"
    )


def _with_conflicts(record: PluginRecord, snapshot: Snapshot) -> PluginRecord:
    """Mark a plugin whose names also belong to another."""
    names = [
        w.name
        for w in record.wrappers
        if not any(other.cls is w.cls for other in snapshot.by_name.get(w.name, ()))
        or len(snapshot.by_name[w.name]) > 1
    ]
    if record.status != "loaded" or not names or record.distribution in FIRST_PARTY:
        return record
    reason = PluginError(
        f"the names {', '.join(names)} belong to another plugin too, or are reserved; use the form "
        f'"{record.distribution}:{names[0]}"'
    )
    return dataclasses.replace(record, status="conflict", error=reason)


_DEFAULT = Registry()


def default_registry() -> Registry:
    """The registry that every function uses unless it is told otherwise."""
    return _DEFAULT


def registered() -> tuple[PluginRecord, ...]:
    """One record per plugin, loading all installed plugins if that has not happened yet."""
    return _DEFAULT.records()


def register(item: Any) -> Any:
    """Register an adapter class or a plugin object in this process. See `Registry.register`."""
    return _DEFAULT.register(item)


def refresh() -> None:
    """Look for plugins again at the next question. See `Registry.refresh`."""
    _DEFAULT.refresh()

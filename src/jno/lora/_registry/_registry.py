"""The registry: answers questions about adapters by class, by name or by distribution."""

import logging
import os
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pluggy

from .._caches import forget
from .._contract import LoRAWrapper
from .._errors import INTERRUPTS, PluginError, warn
from .._paths import show_path
from ._catalog import Catalog
from ._plugins import (
    ZOO_DISTRIBUTION,
    InstalledPlugin,
    complaint_about,
    find_plugins,
    how_to_block,
    load,
    take_in,
)
from ._records import BROKEN, IN_PROCESS, PluginRecord, RegisteredWrapper, plugin_of

_LOG = logging.getLogger("jno.lora.plugins")

# Held only to replace a catalog by another. A signal handler may ask meanwhile, so it is an RLock.
_LOCK = threading.RLock()

# `loading`: the identities of the plugins that this thread loads, whose hooks may ask for plugins.
_THREAD = threading.local()


class _Generation:
    """All that is known since a refresh. A question keeps to one, so a refresh need not wait.

    A plugin is loaded outside of any lock, because its code may do anything. Threads may load a
    plugin at the same time: Python makes them wait for its import, and the first record that is
    published wins.
    """

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._found: dict[str | None, tuple[InstalledPlugin, ...]] = {}
        self._blamed: set[int] = set()  # the plugins of whose hooks there was a warning

    def find(self, distribution: str | None = None) -> tuple[InstalledPlugin, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        self._found[distribution] = self._found.get(distribution) or find_plugins(distribution)
        return self._found[distribution]

    def blame(self, record: PluginRecord, path: str, failure: str) -> None:
        """Warn once that the hook `jno_lora_select` of a plugin has failed."""
        plugin = id(plugin_of(record))
        if plugin in self._blamed:
            return
        self._blamed.add(plugin)
        warn(
            f"The hook `jno_lora_select` of the plugin {record.describe()} {failure}, when it was "
            f"asked about the layer at {show_path(path)!r}. Its answer is left out, and the next "
            f"plugin is asked.{how_to_block(record.distribution)}"
        )

    def publish(self, identity: Hashable, record: PluginRecord) -> None:  # within the lock
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
        with _LOCK:
            if plugin.identity in self.catalog.plugins:
                return False
            self.publish(plugin.identity, record)
            return True


class Registry:
    """Finds, loads and names adapters. Safe in many threads.

    Plugins load lazily. Explicit classes load nothing. The defaults and the names of the zoo's
    classes load only the zoo. Every other question loads all installed plugins once.

    **Arguments:**

    - `discover`: whether to look for installed plugins. With `False`, for applications that must
        not import what happens to be installed, only `register` adds adapters.
    """

    def __init__(self, *, discover: bool = True):
        self.discover = discover
        self._now = _Generation(Catalog({}, discover))

    def _catalog(self, distribution: str | None = None, strict: bool | None = None) -> Catalog:
        """The catalog once the plugins of one distribution, or all plugins, are loaded."""
        now = self._now
        return now.load(now.find(distribution) if self.discover else (), strict)

    def _current(self, distribution: str) -> str:
        """The distribution that provides the adapters of `distribution`: itself, if installed."""
        plugins = self._now.find(distribution) if self.discover and distribution else ()
        return plugins[0].distribution if plugins else distribution

    def records(self, *, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """One record per plugin. Loads all of them, once.

        **Raises:** `PluginError` for a broken plugin if `strict`, by default if `JNO_LORA_STRICT`
        is set.
        """
        return self._catalog(strict=strict).records

    def loaded(self) -> tuple[PluginRecord, ...]:
        """The records of the plugins that are loaded already."""
        return self._now.catalog.records

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`, which the zoo names. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        return self._catalog(ZOO_DISTRIBUTION).defaults()

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        return self._catalog(ZOO_DISTRIBUTION).zoo_class(name)

    def zoo_classes(self) -> dict[str, type[LoRAWrapper]]:
        """The classes of the zoo by their names; none if it cannot be used. Loads only the zoo.

        Warns about a broken zoo, and does not raise in strict mode: `dir(jno.lora)` asks.
        """
        return self._catalog(ZOO_DISTRIBUTION, strict=False).zoo_classes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for. The classes of the zoo go first.

        **Raises:** `PluginError` if the name is ambiguous or its plugin cannot be used, and as
        `records`; `SelectionError` if no adapter or variant has the name.
        """
        distribution, colon, bare = name.rpartition(":")
        zoo_classes = {} if colon else self._catalog(ZOO_DISTRIBUTION).zoo_classes
        if name in zoo_classes:
            return (zoo_classes[name],)
        return self._catalog().resolve(f"{self._current(distribution)}{colon}{bare}")

    def formerly(self, names: Iterable[str]) -> tuple[type[LoRAWrapper], ...]:
        """The loaded classes that `names` mean by nothing but the variant of an earlier release."""
        return self._now.catalog.formerly(names)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        return tuple(wrapper.cls for wrapper in self._catalog().wrappers if wrapper.cls.auto)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`. Loads nothing: only loaded plugins count."""
        return self._now.catalog.by_class.get(cls)

    def provider_of(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """As `provider`, but loads the plugins of the package that defines the class."""
        provider = self.provider(cls)
        if provider is not None or not self.discover:
            return provider
        now, package = self._now, cls.__module__.partition(".")[0]
        now.load([p for p in now.find() if p.module.partition(".")[0] == package], strict=False)
        return self.provider(cls)

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads the plugins of the distribution alone, or of the distribution that took it over.
        **Raises:** `PluginError` if the adapter is missing or cannot be used.
        """
        if distribution is None:
            return self._now.catalog.provided(IN_PROCESS, name)
        return self._catalog(distribution).provided(self._current(distribution), name)

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """Each loaded plugin that implements the hook `name`, with the hook."""
        return self._now.catalog.hooks(name)

    def select(
        self, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
    ) -> type[LoRAWrapper] | None:
        """The first choice of a `jno_lora_select` hook, if any. As in pluggy, the last goes first.

        Warns, once for each plugin, if its hook fails or chooses something that is not a candidate.
        """
        now = self._now
        for record, hook in now.catalog.selectors:
            chosen, failure = _ask_to_choose(hook, path, leaf, candidates)
            if chosen is not None:
                return chosen
            if failure:
                now.blame(record, path, failure)
        return None

    def register(self, item: Any) -> Any:
        """Register an adapter class, or an object with hook implementations, in this process.

        **Arguments:**

        - `item`: a `LoRAWrapper` subclass, or any object (a module, an instance) with functions
            that `jno.lora.hookimpl` marks. A class or module that is defined again under its name,
            as by a notebook cell that runs twice, replaces the former one.

        **Returns:** `item`, so this can be a class decorator.

        **Raises:** `WrapperError` if a class breaks the contract; `PluginError` if an object
        implements no hook, or one that does not exist or has other arguments.
        """
        records = self._now.catalog.plugins.values()
        if not any(record.hooks and plugin_of(record) is item for record in records):
            record = take_in(item)
            name = getattr(item, "__name__", None) or id(item)
            identity = (item.__module__, item.__qualname__) if isinstance(item, type) else (name,)
            with _LOCK:
                self._now.publish((IN_PROCESS, *identity), record)
        return item

    def refresh(self) -> None:
        """Forget every installed plugin, so that the next question looks for plugins again.

        Plugins of this process stay registered, and Python's modules stay imported. Compiled
        programs and facts about classes are forgotten, because classes may have been edited.
        """
        with _LOCK:
            self._now = _Generation(self._now.catalog.of_this_process())
        forget()


def _ask_to_choose(
    hook: pluggy.HookCaller, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
) -> tuple[type[LoRAWrapper] | None, str]:
    """The choice of one plugin, and what its hook did wrong, if anything."""
    try:
        chosen = hook(path=path, leaf=leaf, candidates=tuple(candidates))
        if chosen is None or any(chosen is cls for cls in candidates):
            return chosen, ""
        names = ", ".join(cls.__name__ for cls in candidates)
        return None, f"chose {chosen!r}, which is neither None nor one of the candidates ({names})"
    except INTERRUPTS:
        raise
    except BaseException as err:
        return None, f"raised {type(err).__name__}: {err}"


_DEFAULT = Registry()


def default_registry(given: Registry | None = None) -> Registry:
    """`given`, or else the registry that every function uses."""
    return _DEFAULT if given is None else given


def registered() -> tuple[PluginRecord, ...]:
    """One record per plugin. Loads all of them, once. See `Registry.records`."""
    return _DEFAULT.records()


def register(item: Any) -> Any:
    """Register an adapter class or a plugin object in this process. See `Registry.register`."""
    return _DEFAULT.register(item)


def refresh() -> None:
    """Look for plugins again at the next question. See `Registry.refresh`."""
    _DEFAULT.refresh()

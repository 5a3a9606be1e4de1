"""The registry: answers questions about adapters by class, by name or by distribution."""

import logging
import os
import sys
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pluggy

from .._caches import forget
from .._contract import LoRAWrapper, check_contract
from .._errors import PluginError, warn
from .._paths import show_path
from ._hookspecs import new_manager
from ._names import Names
from ._plugins import (
    BROKEN,
    IN_PROCESS,
    ZOO_DISTRIBUTION,
    ZOO_PACKAGE,
    InstalledPlugin,
    PluginRecord,
    RegisteredWrapper,
    find_plugins,
    how_to_block,
    is_of_zoo,
    load,
    order,
    record_of,
)

_LOG = logging.getLogger("jno.lora.plugins")

# The plugins that a thread loads just now: their modules may ask for other plugins.
_LOADING = threading.local()


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
        self._lock = threading.Lock()  # held to publish a record, never while a plugin loads
        self._plugins: dict[Hashable, PluginRecord] = {}
        self._cached: tuple[Any, Names] | None = None  # the names of these plugins
        self._found: dict[str | None, tuple[InstalledPlugin, ...]] = {}
        self._blamed: list[Any] = []  # the plugins of whose hook there was a warning

    @property
    def _names(self) -> Names:
        cached, plugins = self._cached, self._plugins
        if cached is None or cached[0] is not plugins:
            names = Names(sorted(plugins.values(), key=order), self.discover)
            self._cached = cached = (plugins, names)
        return cached[1]

    def _find(self, distribution: str | None) -> tuple[InstalledPlugin, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        if not self.discover:
            return ()
        plugins = self._found.get(distribution) or find_plugins(distribution)
        self._found[distribution] = plugins
        return plugins

    def _loaded(self, distribution: str | None = None, strict: bool | None = None) -> Names:
        """What names mean once the plugins of one distribution, or all plugins, are loaded."""
        return self._load(self._find(distribution), strict)

    def _load(self, plugins: Sequence[InstalledPlugin], strict: bool | None) -> Names:
        """Load these plugins unless they are loaded. Warns about a plugin that fails.

        Threads may load a plugin at the same time; the first record counts.
        """
        new: list[PluginRecord] = []
        loading: frozenset[Hashable] = getattr(_LOADING, "plugins", frozenset())
        for plugin in plugins:
            if plugin.identity in self._plugins or plugin.identity in loading:
                continue
            try:
                _LOADING.plugins = loading | {plugin.identity}
                _LOG.debug("loading %s (entry point %r)", plugin.distribution, plugin.name)
                record = load(plugin)
            finally:  # an assignment, which Ctrl-C cannot interrupt
                _LOADING.plugins = loading
            with self._lock:
                if plugin.identity not in self._plugins:
                    self._plugins = {**self._plugins, plugin.identity: record}
                    new.append(record)
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        for plugin in plugins if strict else ():
            record = self._plugins.get(plugin.identity)
            if record is not None and record.status in BROKEN:
                raise PluginError(_complaint(record)) from record.error
        for record in new:
            if record.status in BROKEN:
                warn(_complaint(record))
        return self._names

    def _current(self, distribution: str) -> str:
        """The distribution that provides the adapters of `distribution`: itself, if installed."""
        plugins = self._find(distribution) if distribution else ()
        return plugins[0].distribution if plugins else distribution

    def records(self, *, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """One record per plugin. Loads all of them, once.

        **Raises:** `PluginError` for a broken plugin if `strict`, by default if `JNO_LORA_STRICT`
        is set.
        """
        return self._loaded(strict=strict).records

    def loaded(self) -> tuple[PluginRecord, ...]:
        """The records of the plugins that are loaded already."""
        return self._names.records

    def clashes(self) -> dict[str, str]:
        """By qualified name, the plugins that have the name of a loaded adapter as well."""
        return self._names.clashes()

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`, which the zoo names. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        return self._loaded(ZOO_DISTRIBUTION).defaults()

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        return self._loaded(ZOO_DISTRIBUTION).zoo_class(name)

    def zoo_classes(self) -> Mapping[str, type[LoRAWrapper]]:
        """The classes of the zoo by their names; none if it cannot be used. Loads only the zoo.

        A class is made when it is read.

        Warns about a broken zoo, and does not raise in strict mode: `dir(jno.lora)` asks.
        """
        return self._loaded(ZOO_DISTRIBUTION, strict=False).zoo_classes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for. The classes of the zoo go first.

        **Raises:** `PluginError` if the name is ambiguous or its plugin cannot be used, and as
        `records`; `SelectionError` if no adapter or variant has the name.
        """
        distribution, colon, bare = name.rpartition(":")
        if colon:
            return self._loaded().resolve(f"{self._current(distribution)}:{bare}")
        zoo_classes = self._loaded(ZOO_DISTRIBUTION).zoo_classes
        return (zoo_classes[name],) if name in zoo_classes else self._loaded().resolve(name)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        return tuple(wrapper.cls for wrapper in self._loaded().wrappers if wrapper.adapter.auto)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`. Loads nothing: only loaded plugins count."""
        return self._names.provider(cls)

    def provider_of(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """As `provider`, but loads the plugins of the package that defines the class."""
        if (provider := self.provider(cls)) is not None:
            return provider
        package = cls.__module__.partition(".")[0]
        modules = [(plugin, plugin.entry_point.module) for plugin in self._find(None)]
        of_package = [p for p, module in modules if module.partition(".")[0] == package]
        return self._load(of_package, strict=False).provider(cls)

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads the plugins of the distribution alone, or of the distribution that took it over.

        **Raises:** `PluginError` if the adapter is missing or cannot be used.
        """
        if distribution is None:
            return self._names.provided(IN_PROCESS, name)
        return self._loaded(distribution).provided(self._current(distribution), name)

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """Each loaded plugin that implements the hook `name`, with the hook."""
        records = self._names.records
        return [(record, hook) for record in records for hook in record.hooks if hook.name == name]

    def select(
        self, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
    ) -> type[LoRAWrapper] | None:
        """The first choice of a `jno_lora_select` hook, if any. As in pluggy, the last goes first.

        Warns once if the hook of a plugin fails or chooses something that is not a candidate.
        """
        names = ", ".join(cls.__name__ for cls in candidates)
        for record, hook in self._selectors():
            try:
                chosen = hook(path=path, leaf=leaf, candidates=tuple(candidates))
            except Exception as err:
                problem = f"raised {type(err).__name__}: {err}"
            else:
                if any(chosen is cls for cls in candidates):
                    return chosen
                if chosen is None:
                    continue
                problem = f"chose {chosen!r}, which is none of the candidates ({names})"
            if record.plugin in self._blamed:
                continue
            self._blamed.append(record.plugin)
            warn(
                f"The hook `jno_lora_select` of the plugin {record.describe()} {problem}, when it "
                f"was asked about the layer at {show_path(path)!r}. The next plugin is asked."
                f"{how_to_block(record.distribution)}"
            )
        return None

    def _selectors(self) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """The plugins that choose, in pluggy's order (`tryfirst`, `trylast`)."""
        manager, selectors = new_manager(), {}
        for record, hook in self.hooks("jno_lora_select"):
            if not manager.is_registered(record.plugin):  # two distributions may name one module
                manager.register(record.plugin)
            selectors[id(record.plugin)] = (record, hook)
        implementations = reversed(manager.hook.jno_lora_select.get_hookimpls())
        return [selectors[id(implementation.plugin)] for implementation in implementations]

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
        name = getattr(item, "__name__", repr(item))
        origin = (name, IN_PROCESS, "", name)
        if isinstance(item, type):
            check_contract(item)
            wrapper = RegisteredWrapper(item, IN_PROCESS, "")
            # Whoever has a class of the zoo has imported the zoo.
            zoo = sys.modules.get(f"{ZOO_PACKAGE}.plugin") if is_of_zoo(wrapper) else None
            defaults = getattr(zoo, "jno_lora_defaults", ())
            record = PluginRecord(*origin, "loaded", wrappers=(wrapper,), defaults=defaults)
            identity = (IN_PROCESS, item.__module__, item.__qualname__)
        else:
            if any(record.plugin is item for record in self._plugins.values()):
                return item
            record = record_of(item, *origin)
            identity = (IN_PROCESS, getattr(item, "__name__", None) or id(item))
        with self._lock:
            remaining = {key: value for key, value in self._plugins.items() if key != identity}
            self._plugins = {**remaining, identity: record}
        return item

    def refresh(self) -> None:
        """Forget every installed plugin, so that the next question looks for plugins again.

        Plugins of this process stay registered, and Python's modules stay imported. Compiled
        programs and facts about classes are forgotten, because classes may have been edited.
        """
        with self._lock:
            self._found = {}
            plugins = self._plugins.items()
            self._plugins = {key: r for key, r in plugins if r.distribution == IN_PROCESS}
        forget()


def _complaint(record: PluginRecord) -> str:
    why = f"{type(record.error).__name__}: {record.error}"
    return f"The plugin {record.describe()} could not be loaded and is left out: {why}"


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

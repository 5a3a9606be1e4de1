"""The registry: answers questions about adapters by class, by name or by distribution."""

import logging
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pluggy

from .._caches import forget
from .._contract import LoRAWrapper, check_contract
from .._errors import PluginError, warn
from .._paths import show_path
from ._names import Names
from ._plugins import (
    BROKEN,
    IN_PROCESS,
    ZOO_DISTRIBUTION,
    InstalledPlugin,
    PluginRecord,
    RegisteredWrapper,
    find_plugins,
    how_to_block,
    load_plugin,
    order,
    record_of,
    why_unusable,
)

_LOG = logging.getLogger("jno.lora.plugins")

# The plugins that a thread loads just now: their modules may ask for other plugins.
_LOADING = threading.local()


class Registry:
    """Finds, loads and names adapters. Safe in many threads.

    Plugins load lazily. Explicit classes load at most the plugin of their package. The defaults and
    the names of the zoo's classes load only the zoo. Every other question loads all installed
    plugins once.

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
            names = Names(sorted(plugins.values(), key=order))
            self._cached = cached = (plugins, names)
        return cached[1]

    def _find(self, distribution: str | None) -> tuple[InstalledPlugin, ...]:
        """As `find_plugins`, once. A missing distribution is looked for again."""
        if not self.discover:
            return ()
        plugins = self._found.get(distribution)
        if plugins is None or (distribution is not None and not plugins):
            plugins = self._found[distribution] = find_plugins(distribution)
        return plugins

    def _load(
        self, distribution: str | None = None, strict: bool | None = None, package: str = ""
    ) -> Names:
        """Load the plugins of one distribution, or all plugins, once. Warns about broken plugins.

        Threads may load a plugin at the same time; the first record counts.

        - `package`: loads only the plugins whose entry points are in this package, if it is given.
        """
        plugins = [
            plugin
            for plugin in self._find(distribution)
            if package in ("", plugin.entry_point.module.partition(".")[0])
        ]
        new: list[PluginRecord] = []
        loading: frozenset[Hashable] = getattr(_LOADING, "plugins", frozenset())
        for plugin in plugins:
            if plugin.origin in self._plugins or plugin.origin in loading:
                continue
            try:
                _LOADING.plugins = loading | {plugin.origin}
                _LOG.debug("loading %s (entry point %r)", plugin.distribution, plugin.name)
                record = load_plugin(plugin)
            finally:  # an assignment, which Ctrl-C cannot interrupt
                _LOADING.plugins = loading
            with self._lock:
                if plugin.origin not in self._plugins:
                    self._plugins = {**self._plugins, plugin.origin: record}
                    new.append(record)
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        for plugin in plugins if strict else ():
            record = self._plugins.get(plugin.origin)
            if record is not None and record.status in BROKEN:
                raise PluginError(f"The plugin {why_unusable(record)}") from record.error
        for record in new:
            if record.status in BROKEN:
                warn(f"A plugin is left out: {why_unusable(record)}")
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
        return self._load(strict=strict).records

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
        return self._load(ZOO_DISTRIBUTION).defaults()

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        return self._load(ZOO_DISTRIBUTION).zoo_class(name)

    def zoo_classes(self) -> Mapping[str, type[LoRAWrapper]]:
        """The classes of the zoo by their names; none if it cannot be used. Loads only the zoo.

        A class is made when it is read.

        Warns about a broken zoo, and does not raise in strict mode: `dir(jno.lora)` asks.
        """
        return self._load(ZOO_DISTRIBUTION, strict=False).zoo_classes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for. The classes of the zoo go first.

        **Raises:** `PluginError` if the name is ambiguous or its plugin cannot be used, and as
        `records`; `SelectionError` if no adapter or variant has the name.
        """
        distribution, colon, bare = name.rpartition(":")
        if colon:
            return self._load().resolve(f"{self._current(distribution)}:{bare}")
        zoo_classes = self._load(ZOO_DISTRIBUTION).zoo_classes
        return (zoo_classes[name],) if name in zoo_classes else self._load().resolve(name)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        return tuple(wrapper.cls for wrapper in self._load().wrappers if wrapper.adapter.auto)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`. Loads the plugins of the class's package alone."""
        provider = self._names.provider(cls)
        if provider is None:
            package = cls.__module__.partition(".")[0]
            provider = self._load(strict=False, package=package).provider(cls)
        return provider

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads the plugins of the distribution alone, or of the distribution that took it over.

        **Raises:** `PluginError` if the adapter is missing or cannot be used.
        """
        if distribution is None:
            return self._names.provided(IN_PROCESS, name)
        return self._load(distribution).provided(self._current(distribution), name)

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
        selectors = list(reversed(self.hooks("jno_lora_select")))
        selectors.sort(key=_place)
        for record, hook in selectors:
            try:
                chosen = hook(path=path, leaf=leaf, candidates=tuple(candidates))
            except Exception as err:
                problem = f"raised {type(err).__name__}: {err}"
            else:
                if any(chosen is cls for cls in candidates):
                    return chosen
                if chosen is None:
                    continue
                names = ", ".join(cls.__name__ for cls in candidates)
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
            record = PluginRecord(*origin, "loaded", wrappers=(wrapper,))
            identity = (IN_PROCESS, item.__module__, item.__qualname__)
        else:
            record = record_of(item, *origin)
            identity = (IN_PROCESS, getattr(item, "__name__", None) or id(item))
        with self._lock:
            self._plugins = {**self._plugins, identity: record}
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


def _place(selector: tuple[PluginRecord, pluggy.HookCaller]) -> int:
    """The sort key of a hook, by its options `tryfirst` and `trylast` for pluggy."""
    (implementation, *_) = selector[1].get_hookimpls()
    return implementation.trylast - implementation.tryfirst


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

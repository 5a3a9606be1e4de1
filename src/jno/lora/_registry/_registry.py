"""The registry: looks up adapters by class, by name or by distribution."""

import logging
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pluggy

from .._caches import forget
from .._contract import RESERVED_WORDS, LoRAWrapper, check_contract, squash
from .._errors import PluginError, SelectionError, warn
from .._paths import bullets, nearest, show_path
from ._lazy import ClassesByName
from ._plugins import (
    BROKEN,
    IN_PROCESS,
    ZOO_DISTRIBUTION,
    InstalledPlugin,
    PluginRecord,
    RegisteredWrapper,
    find_plugins,
    how_to_block,
    is_of_zoo,
    load_plugin,
    normalise,
    order,
    record_of,
    standing,
    why_unusable,
)

_LOG = logging.getLogger("jno.lora.plugins")

# The plugins that a thread is loading, because their modules may look up other plugins.
_LOADING = threading.local()

_ZOO_ADVICE = (
    "Perhaps it comes from the adapter zoo, or from a later version of the zoo:\n"
    '    pip install -U "jno-lora[zoo]"\n'
    "(A registry with `discover=False` has the zoo after `registry.register(plugin)`.)"
)


class Names:
    """The meaning of names while the plugins of these records are loaded. Ours come first.

    A word is a name or a variant, without case and dashes. A word belongs to the zoo, else to our
    other plugins, else to third parties, and classes of other plugins then lack a bare name. If two
    third parties use the same name, both must be written in full: `"distribution:Name"`.
    """

    def __init__(self, records: Sequence[PluginRecord]):
        self.records = tuple(records)
        self.provided = [wrapper for record in records for wrapper in record.wrappers]
        unique: dict[object, RegisteredWrapper] = {}
        for wrapper in self.provided:  # a class of two plugins counts for the first plugin
            unique.setdefault(wrapper.identity, wrapper)
        self.wrappers = list(unique.values())
        of_zoo = {w.name: w for w in reversed(self.wrappers) if is_of_zoo(w)}
        self.zoo_classes = ClassesByName(of_zoo)
        self.by_word: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in sorted(self.wrappers, key=standing):
            for word in {squash(wrapper.name), wrapper.variant_word} - {""}:
                self.by_word.setdefault(word, []).append(wrapper)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The adapter of class `cls`."""
        namesakes = self.by_word.get(squash(cls.__name__), [])
        return next((wrapper for wrapper in namesakes if wrapper.identity is cls), None)

    def owners(self, word: str) -> list[RegisteredWrapper]:
        """The adapters that own a word: of the zoo, else of our plugins, else all."""
        wrappers = self.by_word.get(squash(word), [])
        return [wrapper for wrapper in wrappers if standing(wrapper) == standing(wrappers[0])]

    def named(self, name: str) -> list[RegisteredWrapper]:
        """The adapters that a bare name may mean: several if third parties clash."""
        if squash(name) in RESERVED_WORDS:
            return []
        return [wrapper for wrapper in self.owners(name) if wrapper.name == name]

    def of_distribution(self, distribution: str, name: str) -> list[RegisteredWrapper]:
        """The adapters `name` of one distribution. Classes of the zoo may be registered by hand."""
        named = [wrapper for wrapper in self.provided if wrapper.name == name]
        if distribution == ZOO_DISTRIBUTION:
            return list(filter(is_of_zoo, named))
        return [wrapper for wrapper in named if wrapper.distribution == distribution]

    def clashes(self) -> dict[str, str]:
        """By an adapter's qualified name, the other plugins that also use its name."""
        clashes: dict[str, str] = {}
        for wrapper in self.wrappers:
            if self.named(wrapper.name) != [wrapper]:
                owners = {owner.distribution for owner in self.owners(wrapper.name)}
                rivals = owners - {wrapper.distribution} or {"jno-lora itself"}
                clashes[wrapper.qualified_name] = ", ".join(sorted(rivals))
        return clashes

    def raise_if_unusable(self, distribution: str, wanted: str) -> None:
        for record in self.records:
            if record.distribution == distribution and not record.usable:
                why = f"{wanted} is not available: the plugin {why_unusable(record)}"
                raise PluginError(why) from record.error

    def without_zoo(self, wanted: str) -> PluginError:
        self.raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        advice = f"{_ZOO_ADVICE}\nor pass adapter classes of your own as `wrapper=`."
        return PluginError(f"{wanted} is not available. {advice}")

    def unknown(self, name: str) -> "UnknownNameError":
        variants = sorted({wrapper.adapter.variant or "" for wrapper in self.wrappers} - {""})
        names = [name for w in self.wrappers for name in (w.name, w.qualified_name)]
        near = ", ".join(map(repr, nearest(name, [*names, *variants]))) or "none"
        unusable = [record for record in self.records if not record.usable]
        lines = [
            f"No adapter or variant is called {name!r}. The nearest names are {near}.",
            *(f"It may belong to the plugin {why_unusable(record)}" for record in unusable),
            f"The variants are {', '.join(variants) or 'none'}.",
            _ZOO_ADVICE,
            "`jno.lora.registered()` lists all plugins with their adapters. A class of your "
            "own needs no name: `wrapper=MyAdapter`, or `jno.lora.register` it.",
        ]
        error = UnknownNameError("\n".join(lines))
        error.__cause__ = unusable[0].error if unusable else None
        return error


class UnknownNameError(SelectionError, PluginError):
    """A name that no adapter has. It may be misspelled, or of a plugin that is not installed."""


def _only(wrappers: Sequence[RegisteredWrapper], name: str) -> RegisteredWrapper:
    """The only adapter of a name. **Raises:** `PluginError` that lists the adapters."""
    unique = {wrapper.identity: wrapper for wrapper in reversed(wrappers)}
    if len(unique) > 1:
        choices = bullets(
            f'wrapper="{w.qualified_name}"  ({w.version or f"{w.adapter.__module__}.{w.name}"})'
            for w in wrappers
        )
        raise PluginError(
            f"The adapter name {name!r} is ambiguous. Say which adapter is meant, or pass the "
            f"class itself:\n{choices}"
        )
    return wrappers[0]


class Registry:
    """Finds, loads and names adapters. Thread-safe.

    Plugins load lazily. Explicit classes load at most the plugin of their package. The defaults and
    the names of the zoo's classes load only the zoo. Every other query loads all installed plugins
    once.

    **Arguments:**

    - `discover`: whether to look for installed plugins. With `False`, only `register` adds
        adapters, for applications that must not import whatever happens to be installed.
    """

    def __init__(self, *, discover: bool = True):
        self.discover = discover
        self._lock = threading.Lock()  # held to publish records, never while a plugin loads
        self._plugins: dict[Hashable, PluginRecord] = {}
        self._cached: tuple[Any, Names] | None = None  # the names of these plugins
        self._found: dict[str | None, tuple[InstalledPlugin, ...]] = {}
        self._blamed: list[Any] = []  # plugins and errors that caused a warning

    @property
    def _names(self) -> Names:
        cached, plugins = self._cached, self._plugins
        if cached is None or cached[0] is not plugins:
            self._cached = cached = (plugins, Names(sorted(plugins.values(), key=order)))
        return cached[1]

    def _find(self, distribution: str | None) -> tuple[InstalledPlugin, ...]:
        """`find_plugins`, cached. A missing distribution is searched for again."""
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
        plugins = self._find(distribution)
        asked = [p for p in plugins if package in ("", p.entry_point.module.partition(".")[0])]
        loading: frozenset[Hashable] = getattr(_LOADING, "plugins", frozenset())
        for plugin in asked:
            if plugin.origin in self._plugins or plugin.origin in loading:
                continue
            try:
                _LOADING.plugins = loading | {plugin.origin}
                _LOG.debug("loading %s (entry point %r)", plugin.distribution, plugin.name)
                record = load_plugin(plugin)
            finally:  # an assignment, which Ctrl-C cannot interrupt
                _LOADING.plugins = loading
            with self._lock:
                self._plugins = {plugin.origin: record} | self._plugins
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        for record in filter(None, (self._plugins.get(plugin.origin) for plugin in asked)):
            if record.status in BROKEN:
                if strict:
                    raise PluginError(f"The plugin {why_unusable(record)}") from record.error
                self._blame(record.error, f"A plugin is left out: {why_unusable(record)}")
        return self._names

    def _blame(self, culprit: Any, message: str) -> None:
        """Warn, once for each culprit."""
        with self._lock:
            if culprit in self._blamed:
                return
            self._blamed.append(culprit)
        warn(message)

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
        """By a loaded adapter's qualified name, the other plugins that also use its name."""
        return self._names.clashes()

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`, which the zoo names. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        names = self._load(ZOO_DISTRIBUTION)
        for record in names.records:
            if record.defaults:
                return tuple(names.zoo_classes[name] for name in record.defaults)
        raise names.without_zoo("The adapter of `wrapper=None`")

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        names = self._load(ZOO_DISTRIBUTION)
        if name not in names.zoo_classes:
            raise names.without_zoo(name)
        return names.zoo_classes[name]

    def zoo_classes(self) -> Mapping[str, type[LoRAWrapper]]:
        """The classes of the zoo by their names; none if it cannot be used. Loads only the zoo.

        Warns about a broken zoo even in strict mode, instead of raising, because `dir(jno.lora)`
        calls this. A class is created when it is read.
        """
        return self._load(ZOO_DISTRIBUTION, strict=False).zoo_classes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for. The classes of the zoo go first.

        **Raises:** `PluginError` if the name is ambiguous or its plugin cannot be used, and as
        `records`; `SelectionError` if no adapter or variant has the name.
        """
        zoo_classes = self._load(ZOO_DISTRIBUTION).zoo_classes
        if name in zoo_classes:
            return (zoo_classes[name],)
        distribution, colon, bare = name.rpartition(":")
        distribution, names = self._current(normalise(distribution)), self._load()
        named = names.of_distribution(distribution, bare) if colon else names.named(name)
        if named:
            return (_only(named, name).cls,)
        word = squash(name)
        if variant := [w.cls for w in names.by_word.get(word, []) if w.variant_word == word]:
            return tuple(variant)
        names.raise_if_unusable(distribution, name)
        raise names.unknown(name)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        return tuple(wrapper.cls for wrapper in self._load().wrappers if wrapper.adapter.auto)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`. Loads only the plugins of its package."""
        provider = self._names.provider(cls)
        if provider is None:
            package = cls.__module__.partition(".")[0]
            provider = self._load(strict=False, package=package).provider(cls)
        return provider

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads only the plugins of the distribution, or of the distribution that took it over.

        **Raises:** `PluginError` if the adapter is missing or cannot be used.
        """
        distribution = IN_PROCESS if distribution is None else self._current(distribution)
        names = self._names if distribution == IN_PROCESS else self._load(distribution)
        if wrappers := names.of_distribution(distribution, name):
            return _only(wrappers, f"{distribution}:{name}")
        names.raise_if_unusable(distribution, name)
        why = "is not installed, or this registry does not look for it (discover=False)"
        if any(record.distribution == distribution for record in names.records):
            had = [w.name for w in names.provided if w.distribution == distribution]
            why = f"has no adapter {name!r}; it has {', '.join(nearest(name, had)) or 'none'}"
        raise PluginError(f"{name} of {distribution} is not available: {distribution} {why}")

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """Each loaded plugin that implements the hook `name`, with the hook."""
        records = self._names.records
        return [(record, hook) for record in records for hook in record.hooks if hook.name == name]

    def sums(self) -> Any:
        """The `Sums` of the first plugin that adds adapters up. Loads all plugins.

        **Raises:** `PluginError` if no plugin does.
        """
        self._load(strict=False)
        for _, hook in self.hooks("jno_lora_sums"):
            return hook()
        raise PluginError(f"No plugin can add sets of adapters up. {_ZOO_ADVICE}")

    def select(
        self, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
    ) -> type[LoRAWrapper] | None:
        """The first choice of a `jno_lora_select` hook, if any.

        As in pluggy, the plugin that was registered last is asked first.

        Warns once if the hook of a plugin fails or chooses something that is not a candidate.
        """
        selectors = list(reversed(self.hooks("jno_lora_select")))
        for record, hook in sorted(selectors, key=_place):
            try:
                chosen = hook(path=path, leaf=leaf, candidates=tuple(candidates))
                if any(chosen is cls for cls in candidates):
                    return chosen
                if chosen is None:
                    continue
                problem = f"chose {chosen!r}, which is not a candidate"
            except Exception as err:
                problem = f"raised {type(err).__name__}: {err}"
            self._blame(
                record.plugin,
                f"The hook `jno_lora_select` of the plugin {record.describe()} {problem}, when it "
                f"was asked about the layer at {show_path(path)!r}. The next plugin is asked."
                f"{how_to_block(record.distribution)}",
            )
        return None

    def register(self, item: Any) -> Any:
        """Register an adapter class, or an object with hook implementations, in this process.

        **Arguments:**

        - `item`: a `LoRAWrapper` subclass, or any object (a module, an instance) with functions
            that `jno.lora.hookimpl` marks. A class or module that is defined again under the same
            name, for example because a notebook cell runs twice, replaces the former class or
            module.

        **Returns:** `item`, so this can be a class decorator.

        **Raises:** `WrapperError` if a class breaks the contract; `PluginError` if an object
        implements no hook, an unknown hook, or a hook with other arguments.
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
            identity = (IN_PROCESS, getattr(item, "__name__", id(item)))
        with self._lock:
            self._plugins = {**self._plugins, identity: record}
        return item

    def refresh(self) -> None:
        """Forget every installed plugin, so that the next query looks for plugins again.

        Plugins of this process stay registered, and Python's modules stay imported. Compiled
        programs and facts about classes are forgotten, because classes may have been edited.
        """
        with self._lock:
            self._found, self._blamed = {}, []
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
    """Look for plugins again at the next query. See `Registry.refresh`."""
    _DEFAULT.refresh()

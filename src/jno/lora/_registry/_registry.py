"""The registry: loads plugins when a question needs them, and says what a name means."""

import logging
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pluggy

from .._caches import forget
from .._contract import LoRAWrapper, check_contract, squash
from .._errors import PluginError, SelectionError, warn
from .._paths import nearest
from ._plugins import (
    BROKEN,
    IN_PROCESS,
    ZOO_DISTRIBUTION,
    ClassesByName,
    InstalledPlugin,
    PluginRecord,
    RegisteredWrapper,
    find_plugins,
    load_plugin,
    normalise,
    order,
    provided_by,
    record_of,
    why_unusable,
)

_LOG = logging.getLogger("jno.lora.plugins")

# The plugins that a thread is loading, because their modules may look up other plugins.
_LOADING = threading.local()

_ZOO_ADVICE = (
    "Perhaps it comes from the adapter zoo, or from a later version of the zoo:\n"
    '    pip install -U "jno-lora[zoo]"\n'
    "(A registry with `discover=False` has the zoo after `registry.register(jno_lora_zoo.plugin)`.)"
)


class UnknownNameError(SelectionError, PluginError):
    """A name that no adapter has. It may be misspelled, or of a plugin that is not installed."""


class Names:
    """What names mean while the plugins of these records are loaded.

    A word is a name or a variant without case, dashes and underscores. It means one family, and
    belongs to the zoo if the zoo uses it, else to our other plugins, else to third parties. If its
    owner uses it as a variant, the family is every adapter of this variant; otherwise, the owner's
    class of this name. Anything else is `"distribution:Name"`.

    - `by_word`: the adapters that use a word, in order of precedence.
    """

    def __init__(self, records: Sequence[PluginRecord]):
        self.records = tuple(records)
        self.wrappers = [wrapper for record in records for wrapper in record.wrappers]
        self.by_word: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in sorted(self.wrappers, key=lambda wrapper: wrapper.precedence):
            for word in {squash(wrapper.name), wrapper.variant_word} - {""}:
                self.by_word.setdefault(word, []).append(wrapper)

    def family(self, word: str) -> list[RegisteredWrapper]:
        """The adapters that a word means, in order of precedence."""
        if word == "auto":
            return []  # which `wrapper=` gives another meaning
        users = self.by_word.get(word, [])
        owners = [user for user in users if user.precedence == users[0].precedence]
        if any(owner.variant_word == word for owner in owners):
            return [user for user in users if user.variant_word == word]
        return owners

    def of_distribution(self, distribution: str, name: str) -> list[RegisteredWrapper]:
        """The adapters that `"distribution:Name"` means: one, unless the plugin has a mistake."""
        users = self.by_word.get(squash(name), [])
        return [user for user in users if (user.distribution, user.name) == (distribution, name)]

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The adapter of class `cls`."""
        users = self.by_word.get(squash(cls.__name__), [])
        return next((user for user in users if user.identity is cls), None)

    def clashes(self) -> dict[str, str]:
        """By an adapter's qualified name, the other plugins that its bare name means."""
        clashes: dict[str, str] = {}
        for wrapper in self.wrappers:
            word = squash(wrapper.name)
            family = self.family(word)
            others = [user for user in family if user.identity is not wrapper.identity]
            is_reached = len(others) < len(family)
            if is_reached:  # the others may just share its variant
                others = [user for user in others if squash(user.name) == word]
            if others or not is_reached:
                rivals = {user.distribution for user in others} or {"jno-lora itself"}
                clashes[wrapper.qualified_name] = ", ".join(sorted(rivals))
        return clashes

    def raise_if_unusable(self, distribution: str, wanted: str) -> None:
        """**Raises:** `PluginError` if the plugin of a distribution is blocked or broken."""
        for record in self.records:
            if record.distribution == distribution and not record.usable:
                why = f"{wanted} is not available: the plugin {why_unusable(record)}"
                raise PluginError(why) from record.error

    def missing(self, distribution: str, name: str) -> UnknownNameError:
        """The error of an adapter that a distribution lacks, or that is not installed."""
        why = "is not installed, or this registry does not look for it (discover=False)"
        if any(record.distribution == distribution for record in self.records):
            had = [
                wrapper.name for wrapper in self.wrappers if wrapper.distribution == distribution
            ]
            why = f"has no adapter {name!r}; it has {', '.join(nearest(name, had)) or 'none'}"
        advice = f". {_ZOO_ADVICE}" if distribution == ZOO_DISTRIBUTION else ""
        wanted = f"{distribution}:{name}"
        return UnknownNameError(f"{wanted} is not available: {distribution} {why}{advice}")

    def unknown(self, name: str) -> UnknownNameError:
        """The error of a word that no adapter has."""
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


class Registry:
    """Finds, loads and names adapters. Thread-safe.

    Plugins load lazily. Explicit classes load at most the plugin of their package. The defaults and
    the names of the zoo's classes load only the zoo, and `"distribution:Name"` only this
    distribution. Every other query loads all installed plugins once.

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
        self._told: list[Any] = []  # the errors of broken plugins that caused a warning

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
                self._warn_once(record)
        return self._names

    def _warn_once(self, record: PluginRecord) -> None:
        with self._lock:
            if record.error in self._told:
                return
            self._told.append(record.error)
        warn(f"A plugin is left out: {why_unusable(record)}")

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a word (a name or a variant) or `"distribution:Name"` means.

        **Returns:** the classes in order of precedence: of the zoo, of our other plugins, of third
        parties.

        **Raises:** `PluginError` if the plugin of the name cannot be used, and as `records`; an
        error that is also a `SelectionError` if no adapter has the name.
        """
        distribution, _, bare = name.rpartition(":")
        if distribution:
            distribution = normalise(distribution)
            names = self._load(distribution)
            family = names.of_distribution(distribution, bare)
        else:
            word = squash(name)
            names = self._load(ZOO_DISTRIBUTION)
            family = names.family(word)
            is_of_zoo = bool(family) and family[0].precedence == 0
            if not is_of_zoo or family[0].variant_word == word:  # other plugins may extend it
                names = self._load()
                family = names.family(word)
        if not family:
            names.raise_if_unusable(distribution, name)
            raise names.missing(distribution, bare) if distribution else names.unknown(name)
        classes = tuple(dict.fromkeys(wrapper.cls for wrapper in family))
        if distribution and len(classes) > 1:
            raise PluginError(
                f"{distribution} has {len(classes)} adapters called {bare!r}: pass the class itself"
            )
        return classes

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        adapters = self._load().wrappers
        return tuple(dict.fromkeys(wrapper.cls for wrapper in adapters if wrapper.adapter.auto))

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`, which the zoo names. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        names = self._load(ZOO_DISTRIBUTION)
        for record in names.records:
            if record.defaults:
                return tuple(map(self.zoo_class, record.defaults))
        wanted = "The adapter of `wrapper=None`"
        names.raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        own = "or pass adapter classes of your own as `wrapper=`."
        raise PluginError(f"{wanted} is not available. {_ZOO_ADVICE}\n{own}")

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        return self.resolve(f"{ZOO_DISTRIBUTION}:{name}")[0]

    def zoo_classes(self) -> Mapping[str, type[LoRAWrapper]]:
        """The classes of the zoo by their names; none if it cannot be used. Loads only the zoo.

        Warns about a broken zoo even in strict mode, instead of raising, because `dir(jno.lora)`
        calls this. A class is created when it is read.
        """
        adapters = self._load(ZOO_DISTRIBUTION, strict=False).wrappers
        return ClassesByName({w.name: w.adapter for w in adapters if w.precedence == 0})

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads only the plugins of the distribution. Raises as `resolve`.
        """
        (cls,) = self.resolve(f"{distribution or IN_PROCESS}:{name}")
        provider = self.provider(cls)
        assert provider is not None
        return provider

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`. Loads only the plugins of its package."""
        provider = self._names.provider(cls)
        if provider is None:
            package = cls.__module__.partition(".")[0]
            provider = self._load(strict=False, package=package).provider(cls)
        return provider

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
        """By a loaded adapter's qualified name, the other plugins that its bare name means."""
        return self._names.clashes()

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """Each loaded plugin that implements the hook `name`, with the hook."""
        records = self._names.records
        return [(record, hook) for record in records for hook in record.hooks if hook.name == name]

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
            wrapper = provided_by(IN_PROCESS, "", item)
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
            self._found, self._told = {}, []
            plugins = self._plugins.items()
            self._plugins = {key: r for key, r in plugins if r.distribution == IN_PROCESS}
        forget()


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

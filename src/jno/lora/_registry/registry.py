"""The registry: loads plugins when a question needs them, and says what a name means."""

import functools
import logging
import operator
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import pluggy

from .._caches import forget
from .._contract.matrix_adapter import registered_class
from .._contract.problems import normalise_word
from .._contract.wrapper import LoRAWrapper
from .._errors import PluginError, SelectionError, warn
from .._paths import nearest
from .plugins import (
    BROKEN,
    IN_PROCESS,
    ZOO_DISTRIBUTION,
    PluginRecord,
    RegisteredWrapper,
    find_plugins,
    load_plugin,
    loaded,
    normalise,
    order,
    why_unusable,
)

T = TypeVar("T")

_LOG = logging.getLogger("jno.lora.plugins")

# The plugins that a thread is loading, because their modules may look up other plugins.
_LOADING = threading.local()

_ZOO_ADVICE = (
    "Perhaps it comes from the adapter zoo, or from a later version of the zoo:\n"
    '    pip install -U "jno-lora[zoo]"\n'
    "(A registry with `discover=False` has the zoo after `registry.register(plugin)`.)"
)


class UnknownNameError(SelectionError, PluginError):
    """A name that no adapter has. It may be misspelled, or of a plugin that is not installed."""


class Names:
    """What names mean while these plugins are loaded.

    A word is a name or a variant without case, dashes and underscores. It means one family, and
    belongs to the zoo if the zoo uses it, else to our other plugins, else to third parties. If its
    owner uses it as a variant, the family is every adapter of this variant; otherwise, the owner's
    class of this name. Anything else is `"distribution:Name"`.
    """

    def __init__(self, plugins: Mapping[Hashable, PluginRecord]):
        self.plugins = plugins

    @functools.cached_property
    def records(self) -> tuple[PluginRecord, ...]:
        return tuple(sorted(self.plugins.values(), key=order))

    @functools.cached_property
    def by_word(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters that use a word, in order of precedence."""
        by_word: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in sorted(self.wrappers, key=lambda wrapper: wrapper.precedence):
            for word in {normalise_word(wrapper.name), wrapper.variant_word} - {""}:
                by_word.setdefault(word, []).append(wrapper)
        return by_word

    @property
    def wrappers(self) -> list[RegisteredWrapper]:
        return [wrapper for record in self.records for wrapper in record.wrappers]

    @functools.cached_property
    def families(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters that each word means, in order of precedence."""
        families: dict[str, list[RegisteredWrapper]] = {}
        for word, users in self.by_word.items():
            owners = [user for user in users if user.precedence == users[0].precedence]
            is_variant = any(owner.variant_word == word for owner in owners)
            families[word] = [x for x in users if x.variant_word == word] if is_variant else owners
        return families

    def of_distribution(self, distribution: str, name: str) -> list[RegisteredWrapper]:
        """The adapters that `"distribution:Name"` means: one, unless the plugin has a mistake."""
        users = self.by_word.get(normalise_word(name), [])
        return [user for user in users if (user.distribution, user.name) == (distribution, name)]

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The adapter of class `cls`."""
        for user in self.by_word.get(normalise_word(cls.__name__), []):
            if cls in (user.adapter, getattr(user.adapter, "made", None)):
                return user
        return None

    def raise_if_unusable(self, distribution: str, wanted: str) -> None:
        """**Raises:** `PluginError` if the plugin of a distribution is blocked or broken.

        Without a distribution, if the own name of such a plugin is in the name that is wanted.
        """
        word = normalise_word(wanted)
        for record in self.records:
            name = normalise_word(record.distribution).removeprefix("jnolora")
            is_meant = record.distribution == distribution if distribution else name in word
            if is_meant and record.status != "loaded":
                why = f"{wanted} is not available: the plugin {why_unusable(record)}"
                raise PluginError(why) from record.error

    def missing(self, distribution: str, name: str) -> UnknownNameError:
        """The error of an adapter that a distribution lacks, or that is not installed."""
        why = "is not installed, or this registry does not look for it (discover=False)"
        if any(record.distribution == distribution for record in self.records):
            had = [user.name for user in self.wrappers if user.distribution == distribution]
            why = f"has no adapter {name!r}; it has {', '.join(nearest(name, had)) or 'none'}"
        advice = f". {_ZOO_ADVICE}" if distribution == ZOO_DISTRIBUTION else ""
        wanted = f"{distribution}:{name}"
        return UnknownNameError(f"{wanted} is not available: {distribution} {why}{advice}")

    def unknown(self, name: str) -> UnknownNameError:
        """The error of a word that no adapter has."""
        variants = sorted({wrapper.adapter.variant or "" for wrapper in self.wrappers} - {""})
        names = [name for w in self.wrappers for name in (w.name, w.qualified_name)]
        near = ", ".join(map(repr, nearest(name, [*names, *variants]))) or "none"
        unusable = [record for record in self.records if record.status != "loaded"]
        lines = [
            f"No adapter or variant is called {name!r}. The nearest names are {near}.",
            *(f"The plugin {why_unusable(x)}. Its adapters are missing." for x in unusable),
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
        self._names = Names({})
        self._found: tuple[PluginRecord, ...] = ()  # not imported yet

    def _load(
        self, distribution: str | None = None, strict: bool | None = None, package: str = ""
    ) -> Names:
        """Load the plugins of one distribution, or all plugins, once. Warns about broken plugins.

        Threads may load a plugin at the same time; the first record counts.

        - `package`: loads only the plugins whose entry points are in this package, if it is given.
        """
        if self.discover and not any(distribution in (None, p.distribution) for p in self._found):
            self._found = find_plugins()
        asked = [p for p in self._found if distribution in (None, p.distribution)]
        asked = [p for p in asked if package in ("", p.package)]
        if strict is None:
            strict = os.environ.get("JNO_LORA_STRICT", "") not in ("", "0")
        loading: frozenset[Hashable] = getattr(_LOADING, "plugins", frozenset())
        for plugin in asked:
            if plugin.key in self._names.plugins or plugin.key in loading:
                continue
            try:
                _LOADING.plugins = loading | {plugin.key}
                _LOG.debug("loading %s (entry point %r)", plugin.distribution, plugin.name)
                record = load_plugin(plugin)
            finally:  # an assignment, which Ctrl-C cannot interrupt
                _LOADING.plugins = loading
            with self._lock:
                is_first = plugin.key not in self._names.plugins
                if is_first:
                    self._names = Names({**self._names.plugins, plugin.key: record})
            if is_first and record.status in BROKEN and not strict:
                warn(f"A plugin is left out: {why_unusable(record)}")
        names = self._names
        for plugin in asked if strict else ():
            record = names.plugins.get(plugin.key, plugin)
            if record.status in BROKEN:
                raise PluginError(f"The plugin {why_unusable(record)}") from record.error
        return names

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a word (a name or a variant) or `"distribution:Name"` means.

        **Returns:** the classes in order of precedence: of the zoo, of our other plugins, of third
        parties.

        **Raises:** `PluginError` if the plugin of the name cannot be used, and as `records`; an
        error that is also a `SelectionError` if no adapter has the name.
        """
        distribution, _, bare = name.rpartition(":")
        if distribution:
            return (self.provided(distribution, bare).cls,)
        word = normalise_word(name)
        names = self._load(ZOO_DISTRIBUTION)
        family = names.families.get(word, [])
        is_of_zoo = bool(family) and family[0].precedence == 0
        if not is_of_zoo or family[0].variant_word == word:  # other plugins may extend it
            names = self._load()
            family = names.families.get(word, [])
        if not family:
            names.raise_if_unusable("", name)
            raise names.unknown(name)
        return tuple(dict.fromkeys(map(operator.attrgetter("cls"), family)))

    def family(self, word: str) -> list[RegisteredWrapper]:
        """The adapters that a word means, of the plugins that are loaded already."""
        return self._names.families.get(normalise_word(word), [])

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
        advice = f"{_ZOO_ADVICE}\nor pass adapter classes of your own as `wrapper=`."
        raise PluginError(f"{wanted} is not available. {advice}")

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Loads only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken, or lacks the class.
        """
        return self.resolve(f"{ZOO_DISTRIBUTION}:{name}")[0]

    def zoo_names(self) -> list[str]:
        """The names of the zoo's classes; none if it cannot be used. Loads only the zoo.

        Warns about a broken zoo even in strict mode, instead of raising, because `dir(jno.lora)`
        calls this.
        """
        adapters = self._load(ZOO_DISTRIBUTION, strict=False).wrappers
        return [wrapper.name for wrapper in adapters if wrapper.precedence == 0]

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads only the plugins of the distribution. Raises as `resolve`.
        """
        wanted = f"{distribution or IN_PROCESS}:{name}"
        distribution = normalise(distribution or IN_PROCESS)
        names = self._load(distribution)
        users = {user.adapter: user for user in names.of_distribution(distribution, name)}
        if not users:
            names.raise_if_unusable(distribution, wanted)
            raise names.missing(distribution, name)
        if len(users) > 1:
            raise PluginError(
                f"{distribution} has {len(users)} adapters called {name!r}: pass the class itself"
            )
        return next(iter(users.values()))

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The registered adapter of class `cls`, or of the composite that `cls` is a choice of.

        Loads only the plugins of its package.
        """
        cls = registered_class(cls)
        provider = self._names.provider(cls)
        if provider is None:
            package = cls.__module__.partition(".")[0]
            provider = self._load(strict=False, package=package).provider(cls)
        return provider

    def distribution(self, cls: type[LoRAWrapper]) -> str | None:
        """The distribution that provides the class `cls`."""
        provider = self.provider(cls)
        return None if provider is None else provider.distribution

    def records(self, *, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """One record per plugin. Loads all of them, once.

        **Raises:** `PluginError` for a broken plugin if `strict`, by default if `JNO_LORA_STRICT`
        is set.
        """
        return self._load(strict=strict).records

    def loaded(self) -> tuple[PluginRecord, ...]:
        """The records of the plugins that are loaded already."""
        return self._names.records

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """Each loaded plugin that implements the hook `name`, with the hook."""
        records = self._names.records
        return [(record, hook) for record in records for hook in record.hooks if hook.name == name]

    def sums(self) -> Any:
        """The `Sums` of the first plugin that adds adapters up. Loads all plugins.

        **Raises:** `PluginError` if no plugin does.
        """
        return self._first("jno_lora_sums", f"add sets of adapters up. {_ZOO_ADVICE}")

    def proofs(self) -> Any:
        """The `Proofs` of the first plugin that has them. Loads all plugins.

        **Raises:** `PluginError` if no plugin does.
        """
        advice = 'pip install "jno-lora[proof]"'
        return self._first("jno_lora_provers", f"write and check proofs in files. {advice}")

    def recorded(self, model: Any, inputs: Any, names: Any = None) -> Callable[..., None]:
        """What puts a proof of `model` into a file; nothing, without `inputs`.

        The model is called now, before an old file is replaced.
        """
        if inputs is None:
            return lambda path: None
        return self.proofs().record(model, inputs, names)

    def _first(self, name: str, what: str) -> Any:
        self._load(strict=False)
        for _, hook in self.hooks(name):
            return hook()
        raise PluginError(f"No plugin can {what}")

    def register(self, item: T) -> T:
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
        record = loaded(PluginRecord(name, IN_PROCESS, version="", value=name), item)
        # A cell of a notebook that runs again defines its classes and modules again.
        if isinstance(item, type):
            key = (IN_PROCESS, item.__module__, item.__qualname__)
        else:
            key = (IN_PROCESS, getattr(item, "__name__", id(item)))
        with self._lock:
            self._names = Names({**self._names.plugins, key: record})
        return item

    def refresh(self) -> None:
        """Forget every installed plugin, so that the next query looks for plugins again.

        Plugins of this process stay registered, and Python's modules stay imported. Compiled
        programs and facts about classes are forgotten, because classes may have been edited.
        """
        with self._lock:
            self._found = ()
            plugins = self._names.plugins.items()
            self._names = Names({key: r for key, r in plugins if r.distribution == IN_PROCESS})
        forget()


_DEFAULT = Registry()


def default_registry(given: Registry | None = None) -> Registry:
    """`given`, or else the registry that every function uses."""
    return _DEFAULT if given is None else given


def registered() -> tuple[PluginRecord, ...]:
    """One record per plugin. Loads all of them, once. See `Registry.records`."""
    return _DEFAULT.records()


def register(item: T) -> T:
    """Register an adapter class or a plugin object in this process. See `Registry.register`."""
    return _DEFAULT.register(item)


def refresh() -> None:
    """Look for plugins again at the next query. See `Registry.refresh`."""
    _DEFAULT.refresh()

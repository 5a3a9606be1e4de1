"""The catalog: the plugins that are known, and the classes that a name stands for."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping

import pluggy

from .._contract import RESERVED_WORDS, LoRAWrapper, squash
from .._errors import PluginError, SelectionError
from .._paths import bullets, nearest
from .._peft_words import method_of_peft
from ._grouping import by_family, grouped
from ._hookspecs import new_manager
from ._plugins import (
    THIRD_PARTY,
    ZOO_DISTRIBUTION,
    ZOO_PACKAGE,
    is_of_zoo,
    normalise,
    order,
    standing,
)
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper, plugin_of, why_unusable


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The plugins that are known at one time, by their identity."""

    plugins: Mapping[Hashable, PluginRecord]
    discover: bool  # whether the registry looks for installed plugins

    def having(self, identity: Hashable, record: PluginRecord) -> "Catalog":
        """This catalog with one more plugin. It replaces a plugin of the same identity."""
        plugins = {key: value for key, value in self.plugins.items() if key != identity}
        return Catalog({**plugins, identity: record}, self.discover)

    def of_this_process(self) -> "Catalog":
        plugins = self.plugins.items()
        in_process = {key: record for key, record in plugins if record.distribution == IN_PROCESS}
        return Catalog(in_process, self.discover)

    @functools.cached_property
    def _in_order(self) -> list[PluginRecord]:
        return sorted(self.plugins.values(), key=order)

    @functools.cached_property
    def records(self) -> tuple[PluginRecord, ...]:
        """All records, with their conflicts, always in the same order."""
        return tuple(map(self._with_conflicts, self._in_order))

    def _with_conflicts(self, record: PluginRecord) -> PluginRecord:
        names = [
            wrapper.name
            for wrapper in record.wrappers
            if [namesake.cls for namesake in self._named(wrapper.name)] != [wrapper.cls]
        ]
        if not names or record.distribution == ZOO_DISTRIBUTION:
            return record
        words = [squash(name) for name in names]
        owners = {w.distribution for word in words for w in self._by_word.get(word, ())}
        owners -= {record.distribution}
        reason = PluginError(
            f"the names {', '.join(names)} are also names or variants of "
            f"{', '.join(sorted(owners)) or 'jno-lora itself'}; write "
            f'"{record.distribution}:{names[0]}"'
        )
        return dataclasses.replace(record, status="conflict", error=reason)

    def hooks(self, name: str) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        by_plugin: dict[int, tuple[PluginRecord, pluggy.HookCaller]] = {}
        for record in self.records:
            for hook in record.hooks:
                if hook.name == name:  # two distributions may name one module
                    by_plugin.setdefault(id(plugin_of(record)), (record, hook))
        return list(by_plugin.values())

    @functools.cached_property
    def selectors(self) -> list[tuple[PluginRecord, pluggy.HookCaller]]:
        """The plugins with a hook `jno_lora_select`, in pluggy's order: the last goes first."""
        manager = new_manager()
        by_plugin: dict[int, tuple[PluginRecord, pluggy.HookCaller]] = {}
        for record, hook in self.hooks("jno_lora_select"):
            plugin = plugin_of(record)
            by_plugin[id(plugin)] = (record, hook)
            manager.register(plugin, name=f"{id(plugin)}")
        implementations = reversed(manager.hook.jno_lora_select.get_hookimpls())
        in_order = dict.fromkeys(id(implementation.plugin) for implementation in implementations)
        return [by_plugin[plugin] for plugin in in_order]

    @functools.cached_property
    def _provided(self) -> list[RegisteredWrapper]:
        return [wrapper for record in self._in_order for wrapper in record.wrappers]

    @functools.cached_property
    def wrappers(self) -> tuple[RegisteredWrapper, ...]:
        """Every usable adapter. A class that two plugins provide counts for the first plugin."""
        return tuple(self.by_class.values())

    @functools.cached_property
    def by_class(self) -> dict[type[LoRAWrapper], RegisteredWrapper]:
        unique: dict[type[LoRAWrapper], RegisteredWrapper] = {}
        for wrapper in self._provided:
            unique.setdefault(wrapper.cls, wrapper)
        return unique

    @functools.cached_property
    def zoo_classes(self) -> dict[str, type[LoRAWrapper]]:
        of_zoo = [wrapper for wrapper in self.wrappers if is_of_zoo(wrapper)]
        return {wrapper.name: wrapper.cls for wrapper in reversed(of_zoo)}

    @functools.cached_property
    def _by_variant(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters of each variant, as `squash` gives it. The zoo goes first."""
        return grouped(self.wrappers, lambda wrapper: squash(wrapper.cls.variant or ""))

    @functools.cached_property
    def _by_former_variant(self) -> dict[str, list[RegisteredWrapper]]:
        return grouped(self.wrappers, lambda wrapper: squash(wrapper.cls.former_variant or ""))

    @functools.cached_property
    def _by_word(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters whose name or variant `squash` makes to the word. The zoo goes first."""
        by_word = grouped(self.wrappers, lambda wrapper: squash(wrapper.name))
        for variant, wrappers in self._by_variant.items():
            by_word[variant] = sorted([*by_word.get(variant, []), *wrappers], key=standing)
        return by_word

    @functools.cached_property
    def by_name(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters of each bare name.

        A word belongs to the zoo if the zoo has it as a name or variant, else to our plugins. A
        class of another plugin whose name is this word has no bare name.
        """
        groups: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in self.wrappers:
            word = squash(wrapper.name)
            (owner, *_) = self._by_word.get(word, [wrapper])
            if standing(wrapper) == standing(owner) and word not in RESERVED_WORDS:
                groups.setdefault(wrapper.name, []).append(wrapper)
        return {
            name: namesakes[:1] if is_of_zoo(namesakes[0]) else namesakes
            for name, namesakes in groups.items()
        }

    def _named(self, name: str) -> list[RegisteredWrapper]:
        """The adapters that a bare name may mean: several if third parties clash.

        They also clash if the name is a variant that another plugin has, and the class has not.
        """
        named = self.by_name.get(name, [])
        of_variant = self._by_variant.get(squash(name), [])
        if not named or standing(named[0]) < THIRD_PARTY or named[0] in of_variant:
            return named
        plugins = {wrapper.distribution for wrapper in named}
        return [*named, *(w for w in of_variant if w.distribution not in plugins)]

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        distribution, colon, bare = name.partition(":")
        if colon:
            if wrapper := self._adapter_of(normalise(distribution), bare, wanted=name):
                return (wrapper.cls,)
            raise self._unknown(name)
        named = self._named(name)
        if len(named) > 1:
            choices = bullets(
                f'wrapper="{wrapper.qualified_name}"  ({wrapper.version or wrapper.cls.__module__})'
                for wrapper in named
            )
            raise PluginError(
                f"The adapter name {name!r} is ambiguous. Say which one is meant:\n{choices}"
            )
        if named:
            return (named[0].cls,)
        of_variant = tuple(wrapper.cls for wrapper in self._by_variant.get(squash(name), ()))
        if classes := of_variant or self.formerly([name]):
            return classes
        raise self._unknown(name)

    def formerly(self, names: Iterable[str]) -> tuple[type[LoRAWrapper], ...]:
        """The classes that `names` mean by nothing but the variant of an earlier release."""
        bare = dict.fromkeys(name.rpartition(":")[2] for name in names)
        variants = dict.fromkeys(map(squash, bare))
        formerly = [w.cls for word in variants for w in self._by_former_variant.get(word, ())]
        return tuple(
            cls
            for cls in formerly
            if not (cls.__name__ in bare or squash(cls.variant or "") in variants)
        )

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        declared = [record.defaults for record in self.records if record.defaults]
        if not declared:
            raise self.without_zoo("The adapter of `wrapper=None`")
        return tuple(self.zoo_class(name) for name in declared[0])

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        if name not in self.zoo_classes:
            raise self.without_zoo(name)
        return self.zoo_classes[name]

    def provided(self, distribution: str, name: str) -> RegisteredWrapper:
        if wrapper := self._adapter_of(distribution, name, wanted=name):
            return wrapper
        records = [record for record in self.records if record.distribution == distribution]
        if not records:
            why = f"{distribution} is not installed"
            if not self.discover:
                why = "a registry with discover=False does not look at installed plugins"
            raise PluginError(f"{name} of {distribution} is not available: {why}")
        names = [wrapper.name for record in records for wrapper in record.wrappers]
        near = ", ".join(nearest(name, names)) or "no adapter at all"
        raise PluginError(f"{records[0].describe()} has no adapter {name!r}; it has {near}")

    def _adapter_of(self, distribution: str, name: str, wanted: str) -> RegisteredWrapper | None:
        namesakes = [wrapper for wrapper in self._provided if wrapper.name == name]
        matches = [wrapper for wrapper in namesakes if wrapper.distribution == distribution]
        if not matches and distribution == ZOO_DISTRIBUTION:  # registered by hand
            matches = [wrapper for wrapper in namesakes if is_of_zoo(wrapper)]
        by_class = {wrapper.cls: wrapper for wrapper in matches}
        if len(by_class) > 1:
            raise PluginError(
                f"'{distribution}:{name}' is ambiguous; pass the class itself. It may be\n"
                + bullets(f"{cls.__module__}.{cls.__qualname__}" for cls in by_class)
            )
        if not matches:
            self._raise_if_unusable(distribution, wanted)
        return next(iter(by_class.values()), None)

    def _raise_if_unusable(self, distribution: str, wanted: str) -> None:
        for record in self.records:
            if record.distribution == distribution and not record.usable:
                why = f"{wanted} is not available: the plugin {why_unusable(record)}"
                raise PluginError(why) from record.error

    def _zoo_advice(self) -> str:
        if self._has_zoo:
            return f"A later {ZOO_DISTRIBUTION} may have it:\n    pip install -U {ZOO_DISTRIBUTION}"
        if self.discover:
            where, advice = "which is not installed", 'pip install "jno-lora[zoo]"'
        else:
            where = "and a registry with discover=False holds only what is registered in it"
            register = f"registry.register({ZOO_PACKAGE}.plugin)"
            advice = f'import {ZOO_PACKAGE}  # pip install "jno-lora[zoo]"\n    {register}'
        return f"Perhaps it comes from the adapter zoo, {where}:\n    {advice}"

    @property
    def _has_zoo(self) -> bool:
        return any(wrapper.distribution == ZOO_DISTRIBUTION for wrapper in self.wrappers)

    def without_zoo(self, wanted: str) -> PluginError:
        self._raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        advice = f"{self._zoo_advice()}\nor pass adapter classes of your own as `wrapper=`."
        return PluginError(f"{wanted} is not available. {advice}")

    def _unknown(self, name: str) -> SelectionError:
        variants = sorted({wrapper.cls.variant or "" for wrapper in self.wrappers} - {""})
        qualified = [wrapper.qualified_name for wrapper in self.wrappers]
        lines = [f"No adapter or variant is called {name!r}."]
        if method := method_of_peft(name):
            return SelectionError(f"{lines[0]} In PEFT, {name} {method}. docs/peft.md says more.")
        if near := ", ".join(map(repr, nearest(name, [*self.by_name, *variants, *qualified]))):
            lines.append(f"The nearest names are {near}.")
        unusable = [record for record in self.records if not record.usable]
        if unusable:
            reasons = bullets(map(why_unusable, unusable))
            lines += ["It may belong to a plugin that could not be used:", reasons]
        if variants:
            lines += ["The variants are, by family:", bullets(by_family(self.wrappers))]
        if not any(record.distribution == ZOO_DISTRIBUTION for record in unusable):
            lines.append(self._zoo_advice())
        lines.append(
            "`jno.lora.registered()`, or `jno-lora adapters`, lists all adapters. A class of "
            "your own needs no name: `wrapper=MyAdapter`, or `jno.lora.register` it."
        )
        error = (SelectionError if self._has_zoo else _UnknownWithoutZooError)("\n".join(lines))
        error.__cause__ = unusable[0].error if unusable else None
        return error


class _UnknownWithoutZooError(SelectionError, PluginError):
    """A name that no adapter has. The zoo may have it, but cannot be used."""

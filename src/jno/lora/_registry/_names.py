"""The classes that a name or a variant stands for, among the plugins that are loaded."""

import functools
from collections.abc import Sequence

from .._contract import RESERVED_WORDS, LoRAWrapper, squash
from .._errors import PluginError, SelectionError
from .._paths import bullets, nearest
from ._grouping import by_family, grouped
from ._lazy import ClassesByName
from ._plugins import (
    THIRD_PARTY,
    ZOO_DISTRIBUTION,
    ZOO_PACKAGE,
    PluginRecord,
    RegisteredWrapper,
    is_of_zoo,
    normalise,
    standing,
    why_unusable,
)


class Names:
    """What names mean while these plugins are loaded.

    - `records`: the plugins, ours first.
    - `discover`: whether the registry looks for installed plugins, for messages.
    """

    def __init__(self, records: Sequence[PluginRecord], discover: bool):
        self.records, self._discover = tuple(records), discover
        self._provided = [wrapper for record in self.records for wrapper in record.wrappers]
        self.wrappers: list[RegisteredWrapper] = []
        self._namesakes: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in self._provided:
            namesakes = self._namesakes.setdefault(wrapper.name, [])
            # A class that two plugins provide counts for the first plugin.
            if all(namesake.identity is not wrapper.identity for namesake in namesakes):
                namesakes.append(wrapper)
                self.wrappers.append(wrapper)
        of_zoo = {w.name: w for w in reversed(self.wrappers) if is_of_zoo(w)}
        self.zoo_classes = ClassesByName(of_zoo)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The adapter of class `cls`."""
        namesakes = self._namesakes.get(cls.__name__, [])
        return next((wrapper for wrapper in namesakes if wrapper.identity is cls), None)

    @functools.cached_property
    def _by_variant(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters of each variant, as `squash` gives it. The zoo goes first."""
        return grouped(self.wrappers, lambda wrapper: squash(wrapper.adapter.variant or ""))

    @functools.cached_property
    def _by_name(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters that each bare name may mean: several if third parties clash.

        A name belongs to the zoo if the zoo has it as a name or variant, else to our plugins: a
        class of another plugin has no bare name then. It clashes with a variant of other plugins.
        """
        owners = grouped(self.wrappers, lambda wrapper: squash(wrapper.name))
        for variant, wrappers in self._by_variant.items():
            owners[variant] = sorted([*owners.get(variant, []), *wrappers], key=standing)
        named: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in self.wrappers:
            word = squash(wrapper.name)
            if standing(wrapper) == standing(owners[word][0]) and word not in RESERVED_WORDS:
                named.setdefault(wrapper.name, []).append(wrapper)
        for name, namesakes in named.items():
            of_variant = self._by_variant.get(squash(name), [])
            if is_of_zoo(namesakes[0]):
                del namesakes[1:]
            elif standing(namesakes[0]) == THIRD_PARTY and namesakes[0] not in of_variant:
                plugins = {wrapper.distribution for wrapper in namesakes}
                namesakes += [w for w in of_variant if w.distribution not in plugins]
        return named

    def clashes(self) -> dict[str, str]:
        """By qualified name, the plugins that have the name of an adapter as well."""
        clashes: dict[str, str] = {}
        for wrapper in self.wrappers:
            namesakes = self._by_name.get(wrapper.name, [])
            if not is_of_zoo(wrapper) and namesakes != [wrapper]:
                owners = {w.distribution for w in namesakes} - {wrapper.distribution}
                clashes[wrapper.qualified_name] = ", ".join(sorted(owners)) or "jno-lora itself"
        return clashes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name, a variant or `"distribution:Name"` stands for."""
        distribution, colon, bare = name.partition(":")
        if colon:
            if wrapper := self._adapter_of(normalise(distribution), bare, wanted=name):
                return (wrapper.cls,)
            raise self._unknown(name)
        named = self._by_name.get(name, [])
        if len(named) > 1:
            choices = bullets(
                f'wrapper="{w.qualified_name}"  ({w.version or w.adapter.__module__})'
                for w in named
            )
            raise PluginError(
                f"The adapter name {name!r} is ambiguous. Say which one is meant:\n{choices}"
            )
        if classes := tuple(w.cls for w in named or self._by_variant.get(squash(name), ())):
            return classes
        raise self._unknown(name)

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        for record in self.records:
            if record.defaults:
                return tuple(self.zoo_class(name) for name in record.defaults)
        raise self._without_zoo("The adapter of `wrapper=None`")

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        if name not in self.zoo_classes:
            raise self._without_zoo(name)
        return self.zoo_classes[name]

    def provided(self, distribution: str, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution."""
        if wrapper := self._adapter_of(distribution, name, wanted=name):
            return wrapper
        records = [record for record in self.records if record.distribution == distribution]
        if not records:
            why = f"{distribution} is not installed"
            if not self._discover:
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

    def _without_zoo(self, wanted: str) -> PluginError:
        self._raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        advice = f"{self._zoo_advice()}\nor pass adapter classes of your own as `wrapper=`."
        return PluginError(f"{wanted} is not available. {advice}")

    def _zoo_advice(self) -> str:
        if self.zoo_classes:
            return f"A later {ZOO_DISTRIBUTION} may have it:\n    pip install -U {ZOO_DISTRIBUTION}"
        if self._discover:
            where, advice = "which is not installed", 'pip install "jno-lora[zoo]"'
        else:
            where = "and a registry with discover=False holds only what is registered in it"
            register = f"registry.register({ZOO_PACKAGE}.plugin)"
            advice = f'import {ZOO_PACKAGE}  # pip install "jno-lora[zoo]"\n    {register}'
        return f"Perhaps it comes from the adapter zoo, {where}:\n    {advice}"

    def _unknown(self, name: str) -> SelectionError:
        variants = sorted({wrapper.adapter.variant or "" for wrapper in self.wrappers} - {""})
        qualified = [wrapper.qualified_name for wrapper in self.wrappers]
        lines = [f"No adapter or variant is called {name!r}."]
        if near := ", ".join(map(repr, nearest(name, [*self._by_name, *variants, *qualified]))):
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
        error = (SelectionError if self.zoo_classes else _UnknownWithoutZooError)("\n".join(lines))
        error.__cause__ = unusable[0].error if unusable else None
        return error


class _UnknownWithoutZooError(SelectionError, PluginError):
    """A name that no adapter has. The zoo may have it, but cannot be used."""

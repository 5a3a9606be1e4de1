"""The catalog: the plugins that are known, and the classes that a name stands for."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from .._contract import LoRAWrapper
from .._errors import PluginError, SelectionError
from .._paths import bullets, nearest
from ._plugins import normalise, order
from ._records import IN_PROCESS, Hook, PluginRecord, RegisteredWrapper, why_unusable
from ._zoo_names import (
    FIRST_PARTY,
    ZOO_DISTRIBUTION,
    ZOO_METHODS,
    ZOO_NAMES,
    ZOO_PACKAGE,
    squash,
)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The plugins that are known at one time, by their identity."""

    plugins: Mapping[Hashable, PluginRecord]
    discover: bool  # whether the registry looks for installed plugins

    def having(self, identity: Hashable, record: PluginRecord) -> "Catalog":
        """This catalog with one more plugin. It replaces a plugin of the same identity."""
        others = {key: value for key, value in self.plugins.items() if key != identity}
        return Catalog({**others, identity: record}, self.discover)

    def of_this_process(self) -> "Catalog":
        """A catalog of only those plugins that were registered in this process."""
        kept = {key: it for key, it in self.plugins.items() if it.distribution == IN_PROCESS}
        return Catalog(kept, self.discover)

    @functools.cached_property
    def _in_order(self) -> list[PluginRecord]:
        return sorted(self.plugins.values(), key=order)

    @functools.cached_property
    def records(self) -> tuple[PluginRecord, ...]:
        """All records, with their conflicts, always in the same order."""
        return tuple(map(self._with_conflicts, self._in_order))

    def _with_conflicts(self, record: PluginRecord) -> PluginRecord:
        """Mark a plugin with names that also belong to another plugin, or to the zoo."""
        names = [
            wrapper.name
            for wrapper in record.wrappers
            if [other.cls for other in self.by_name.get(wrapper.name, ())] != [wrapper.cls]
        ]
        if not names or record.distribution == ZOO_DISTRIBUTION:
            return record
        reason = PluginError(
            f"the names {', '.join(names)} belong to another plugin too, or are reserved; write "
            f'"{record.distribution}:{names[0]}"'
        )
        return dataclasses.replace(record, status="conflict", error=reason)

    def hooks(self, name: str) -> list[tuple[PluginRecord, Hook]]:
        """Each implementation of a hook, once, with its plugin, in the order of the records."""
        unique: dict[object, tuple[PluginRecord, Hook]] = {}  # two plugins may name one module
        for record in self.records:
            for hook in record.hooks:
                if hook.name == name:
                    unique.setdefault(hook.implementation.function, (record, hook))
        return list(unique.values())

    @functools.cached_property
    def _provided(self) -> list[RegisteredWrapper]:
        return [wrapper for record in self._in_order for wrapper in record.wrappers]

    @functools.cached_property
    def wrappers(self) -> tuple[RegisteredWrapper, ...]:
        """Every usable adapter. One class provided twice counts once, for its first provider."""
        unique: dict[type[LoRAWrapper], RegisteredWrapper] = {}
        for wrapper in self._provided:
            unique.setdefault(wrapper.cls, wrapper)
        return tuple(unique.values())

    @functools.cached_property
    def by_name(self) -> dict[str, list[RegisteredWrapper]]:
        """The adapters of each bare name. A name of the zoo belongs to the zoo alone."""
        groups: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in self.wrappers:
            # Also a class of the zoo that somebody registers.
            package = wrapper.cls.__module__.partition(".")[0]
            by_hand = wrapper.distribution == IN_PROCESS and package == ZOO_PACKAGE
            if by_hand or wrapper.distribution == ZOO_DISTRIBUTION or wrapper.name not in ZOO_NAMES:
                groups.setdefault(wrapper.name, []).append(wrapper)
        return {
            name: [it for it in group if it.distribution in FIRST_PARTY] or group
            for name, group in groups.items()
        }

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that `name` stands for: one for a name, several for a variant."""
        distribution, colon, bare = name.partition(":")
        if colon:
            distribution = normalise(distribution)
            if wrapper := self._of_distribution(distribution, bare, wanted=name):
                return (wrapper.cls,)
            is_of_zoo = distribution == ZOO_DISTRIBUTION and bare in ZOO_NAMES
            raise self.without_zoo(bare) if is_of_zoo else self._unknown(name)
        named = self.by_name.get(name, [])
        if len(named) > 1:
            raise PluginError(
                f"The adapter name {name!r} is ambiguous. Say which one is meant:\n"
                + bullets(
                    f'wrapper="{it.qualified_name}"  ({it.version or it.cls.__module__})'
                    for it in named
                )
            )
        if named:
            return (named[0].cls,)
        variant = squash(name)
        classes = (it.cls for it in self.wrappers)
        if family := tuple(it for it in classes if it.variant and squash(it.variant) == variant):
            return family
        raise self._unknown(name)

    def provided(self, distribution: str, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution. **Raises:** `PluginError` if it has none."""
        if wrapper := self._of_distribution(distribution, name, wanted=name):
            return wrapper
        record = next((it for it in self.records if it.distribution == distribution), None)
        if record is None:
            why = f"{distribution} is not installed"
            if not self.discover:
                why = "a registry with discover=False does not look at installed plugins"
            raise PluginError(f"{name} of {distribution} is not available: {why}")
        names = [it.name for it in self._provided if it.distribution == distribution]
        near = ", ".join(nearest(name, names)) or "no adapter at all"
        raise PluginError(f"{record.describe()} has no adapter {name!r}; it has {near}")

    def _of_distribution(
        self, distribution: str, name: str, wanted: str
    ) -> RegisteredWrapper | None:
        provided = [it for it in self._provided if it.distribution == distribution]
        found = {it.cls: it for it in provided if it.name == name}
        if not found and distribution == ZOO_DISTRIBUTION and name in ZOO_NAMES:
            found = {it.cls: it for it in self.by_name.get(name, ())}  # registered by hand
        if len(found) > 1:
            raise PluginError(
                f"'{distribution}:{name}' is ambiguous; pass the class itself. It may be\n"
                + bullets(f"{cls.__module__}.{cls.__qualname__}" for cls in found)
            )
        if not found:
            self._raise_if_unusable(distribution, wanted)
        return next(iter(found.values()), None)

    def _raise_if_unusable(self, distribution: str, wanted: str) -> None:
        """Raise the error that kept a plugin of `distribution` from loading, if any did."""
        for record in self.records:
            if record.distribution == distribution and not record.usable:
                raise PluginError(
                    f"{wanted} is not available: the plugin {why_unusable(record)}"
                ) from record.error

    def without_zoo(self, wanted: str) -> PluginError:
        """The error for a missing name or variant of the zoo: it says what to do."""
        self._raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        if self._has_zoo:
            return PluginError(
                f"The installed {ZOO_DISTRIBUTION} has no {wanted}. Upgrade it with\n"
                f"    pip install -U {ZOO_DISTRIBUTION}"
            )
        advice = 'which is not installed. Install it with\n    pip install "jno-lora[zoo]"'
        if not self.discover:
            advice = (
                "and a registry with discover=False holds only what is registered in it. Register "
                f'it:\n    import {ZOO_PACKAGE}  # pip install "jno-lora[zoo]"\n'
                f"    registry.register({ZOO_PACKAGE}.LoRALinear)"
            )
        return PluginError(
            f"{wanted} is part of the adapter zoo, {advice}\n"
            "or pass adapter classes of your own as `wrapper=`."
        )

    @property
    def _has_zoo(self) -> bool:
        return any(it.distribution == ZOO_DISTRIBUTION and it.usable for it in self.records)

    def _unknown(self, name: str) -> Exception:
        if squash(name) in map(squash, ZOO_METHODS) and not self._has_zoo:
            return self.without_zoo(name)
        variants = {it.cls.variant for it in self.wrappers if it.cls.variant}
        options = [*self.by_name, *sorted(variants), *(it.qualified_name for it in self.wrappers)]
        lines = [f"No adapter or variant is called {name!r}."]
        if near := ", ".join(map(repr, nearest(name, options))):
            lines.append(f"The nearest names are {near}.")
        broken = [record for record in self.records if not record.usable]
        if broken:
            reasons = bullets(map(why_unusable, broken))
            lines += ["It may belong to a plugin that could not be used:", reasons]
        if variants:
            lines += ["The variants are, by family:", bullets(_by_family(self.wrappers))]
        lines.append(
            "`jno.lora.registered()`, or `jno-lora adapters`, lists what is installed. A class of "
            "your own needs no name: `wrapper=MyAdapter`, or `jno.lora.register` it."
        )
        error = SelectionError("\n".join(lines))
        error.__cause__ = broken[0].error if broken else None
        return error


def methods_of(classes: Iterable[type[LoRAWrapper]]) -> dict[type[LoRAWrapper], str]:
    """The name of each adapter's method: the shortest variant with its paper and formula."""
    methods: dict[Any, list[type[LoRAWrapper]]] = {}
    for cls in classes:
        key = (cls.paper, cls.formula) if cls.paper else cls.variant or cls.__name__
        methods.setdefault(key, []).append(cls)
    return {
        cls: min((it.variant or it.__name__ for it in method), key=len)
        for method in methods.values()
        for cls in method
    }


def _by_family(wrappers: Iterable[RegisteredWrapper]) -> list[str]:
    """A line for each family: the names of its methods that have a variant."""
    families: dict[str, set[str]] = {}
    for cls, method in methods_of(it.cls for it in wrappers if it.cls.variant).items():
        families.setdefault(cls.family or "others", set()).add(method)
    return [f"{family}: {', '.join(sorted(names))}" for family, names in sorted(families.items())]

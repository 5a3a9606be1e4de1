"""The classes that a name or a variant stands for, among the plugins that are loaded."""

from collections.abc import Sequence

from .._contract import RESERVED_WORDS, LoRAWrapper, squash
from .._errors import PluginError, SelectionError
from .._paths import bullets, nearest
from ._lazy import ClassesByName
from ._plugins import (
    ZOO_DISTRIBUTION,
    PluginRecord,
    RegisteredWrapper,
    is_of_zoo,
    normalise,
    standing,
    why_unusable,
)

_ZOO_ADVICE = (
    "Perhaps it comes from the adapter zoo, or from a later version of the zoo:\n"
    '    pip install -U "jno-lora[zoo]"\n'
    "(A registry with `discover=False` has the zoo after `registry.register(jno_lora_zoo.plugin)`.)"
)


class Names:
    """What names mean while the plugins of these records are loaded. Our plugins come first.

    A word is a name or a variant, without case and dashes. It belongs to the zoo, else to our other
    plugins, else to third parties; a class of anybody else has no bare name then. If two third
    parties want a word as a name, both have to be written in full: `"distribution:Name"`.
    """

    def __init__(self, records: Sequence[PluginRecord]):
        self.records = tuple(records)
        self._provided = [wrapper for record in records for wrapper in record.wrappers]
        unique: dict[object, RegisteredWrapper] = {}
        for wrapper in self._provided:  # a class of two plugins counts for the first plugin
            unique.setdefault(wrapper.identity, wrapper)
        self.wrappers = list(unique.values())
        of_zoo = {w.name: w for w in reversed(self.wrappers) if is_of_zoo(w)}
        self.zoo_classes = ClassesByName(of_zoo)
        self._by_word: dict[str, list[RegisteredWrapper]] = {}
        for wrapper in sorted(self.wrappers, key=standing):
            for word in {squash(wrapper.name), wrapper.variant_word} - {""}:
                self._by_word.setdefault(word, []).append(wrapper)

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """The adapter of class `cls`."""
        namesakes = self._by_word.get(squash(cls.__name__), [])
        return next((wrapper for wrapper in namesakes if wrapper.identity is cls), None)

    def _owners(self, word: str) -> list[RegisteredWrapper]:
        """The adapters to which a word belongs: of the zoo, else of our plugins, else of all."""
        wrappers = self._by_word.get(squash(word), [])
        return [wrapper for wrapper in wrappers if standing(wrapper) == standing(wrappers[0])]

    def _named(self, name: str) -> list[RegisteredWrapper]:
        """The adapters that a bare name may mean: several if third parties clash."""
        word, owners = squash(name), self._owners(name)
        named = [wrapper for wrapper in owners if wrapper.name == name]
        if not named or word in RESERVED_WORDS:
            return []
        if named[0].variant_word == word:  # other plugins may extend the variant
            return named
        return named + [
            w for w in owners if w.distribution != named[0].distribution and w not in named
        ]

    def _of_distribution(self, distribution: str, name: str) -> list[RegisteredWrapper]:
        """The adapters `name` of one distribution. Classes of the zoo may be registered by hand."""
        return [
            wrapper
            for wrapper in self._provided
            if wrapper.name == name
            and (
                wrapper.distribution == distribution
                or (distribution == ZOO_DISTRIBUTION and is_of_zoo(wrapper))
            )
        ]

    def clashes(self) -> dict[str, str]:
        """By qualified name, the plugins that have the name of an adapter as well."""
        clashes: dict[str, str] = {}
        for wrapper in self.wrappers:
            if self._named(wrapper.name) != [wrapper]:
                owners = {owner.distribution for owner in self._owners(wrapper.name)}
                rivals = sorted(owners - {wrapper.distribution})
                clashes[wrapper.qualified_name] = ", ".join(rivals) or "jno-lora itself"
        return clashes

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name, a variant or `"distribution:Name"` stands for."""
        distribution, colon, bare = name.rpartition(":")
        distribution = normalise(distribution)
        named = self._of_distribution(distribution, bare) if colon else self._named(name)
        if named:
            return (_only(named, name).cls,)
        word = squash(name)
        if variant := [w.cls for w in self._by_word.get(word, []) if w.variant_word == word]:
            return tuple(variant)
        self._raise_if_unusable(distribution, name)
        raise self._unknown(name)

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`, which the zoo names."""
        for record in self.records:
            if record.defaults:
                return tuple(self.zoo_class(name) for name in record.defaults)
        raise self._without_zoo("The adapter of `wrapper=None`")

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """A class of the zoo by its name."""
        if name not in self.zoo_classes:
            raise self._without_zoo(name)
        return self.zoo_classes[name]

    def provided(self, distribution: str, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution."""
        if wrappers := self._of_distribution(distribution, name):
            return _only(wrappers, f"{distribution}:{name}")
        self._raise_if_unusable(distribution, name)
        why = "is not installed, or this registry does not look for it (discover=False)"
        if any(record.distribution == distribution for record in self.records):
            names = [w.name for w in self._provided if w.distribution == distribution]
            why = f"has no adapter {name!r}; it has {', '.join(nearest(name, names)) or 'none'}"
        raise PluginError(f"{name} of {distribution} is not available: {distribution} {why}")

    def _raise_if_unusable(self, distribution: str, wanted: str) -> None:
        for record in self.records:
            if record.distribution == distribution and not record.usable:
                why = f"{wanted} is not available: the plugin {why_unusable(record)}"
                raise PluginError(why) from record.error

    def _without_zoo(self, wanted: str) -> PluginError:
        self._raise_if_unusable(ZOO_DISTRIBUTION, wanted)
        advice = f"{_ZOO_ADVICE}\nor pass adapter classes of your own as `wrapper=`."
        return PluginError(f"{wanted} is not available. {advice}")

    def _unknown(self, name: str) -> "UnknownNameError":
        variants = sorted({wrapper.adapter.variant or "" for wrapper in self.wrappers} - {""})
        names = [name for w in self.wrappers for name in (w.name, w.qualified_name)]
        lines = [f"No adapter or variant is called {name!r}."]
        if near := ", ".join(map(repr, nearest(name, [*names, *variants]))):
            lines.append(f"The nearest names are {near}.")
        unusable = [record for record in self.records if not record.usable]
        if unusable:
            reasons = bullets(map(why_unusable, unusable))
            lines += ["It may belong to a plugin that could not be used:", reasons]
        if variants:
            lines.append(f"The variants are {', '.join(variants)}.")
        lines += [
            _ZOO_ADVICE,
            "`jno.lora.registered()`, or `jno-lora adapters`, lists all adapters. A class of "
            "your own needs no name: `wrapper=MyAdapter`, or `jno.lora.register` it.",
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

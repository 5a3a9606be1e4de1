"""Adapters in groups: by their variants, methods and families."""

from collections.abc import Callable, Iterable
from typing import Any

from .._contract import LoRAWrapper, squash
from ._plugins import PluginRecord, RegisteredWrapper, standing


def grouped(
    wrappers: Iterable[RegisteredWrapper], word_of: Callable[[RegisteredWrapper], str]
) -> dict[str, list[RegisteredWrapper]]:
    """The adapters by a word, without the adapters that have no such word. The zoo goes first."""
    groups: dict[str, list[RegisteredWrapper]] = {}
    for wrapper in sorted(wrappers, key=standing):
        if word := word_of(wrapper):
            groups.setdefault(word, []).append(wrapper)
    return groups


def shared_variants(records: Iterable[PluginRecord]) -> list[list[RegisteredWrapper]]:
    """The adapters of each variant that several distributions have. The zoo goes first."""
    unique: dict[type[LoRAWrapper], RegisteredWrapper] = {}
    for wrapper in (wrapper for record in records for wrapper in record.wrappers):
        unique.setdefault(wrapper.cls, wrapper)
    groups = grouped(unique.values(), lambda wrapper: squash(wrapper.adapter.variant or ""))
    return [group for group in groups.values() if len({w.distribution for w in group}) > 1]


def methods_of(classes: Iterable[type[LoRAWrapper]]) -> dict[type[LoRAWrapper], str]:
    """The name of each adapter's method: the shortest variant with its paper and formula."""
    methods: dict[Any, list[type[LoRAWrapper]]] = {}
    for cls in classes:
        about = cls.about
        key = (about.paper, about.formula) if about.paper else cls.variant or cls.__name__
        methods.setdefault(key, []).append(cls)
    names: dict[type[LoRAWrapper], str] = {}
    for adapters in methods.values():
        name = min((cls.variant or cls.__name__ for cls in adapters), key=len)
        names |= dict.fromkeys(adapters, name)
    return names


def by_family(wrappers: Iterable[RegisteredWrapper]) -> list[str]:
    classes = [wrapper.cls for wrapper in wrappers if wrapper.adapter.variant]
    families: dict[str, set[str]] = {}
    for cls, method in methods_of(classes).items():
        families.setdefault(cls.about.family or "others", set()).add(method)
    return [f"{family}: {', '.join(sorted(names))}" for family, names in sorted(families.items())]

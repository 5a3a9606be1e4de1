"""`jno-lora plugins`, `adapters` and `doctor`: what is installed, and whether it is in order."""

import functools
import platform
import re
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax

from .. import __path__ as _package_path
from .._contract import statistic_keys
from .._paths import FEW
from .._registry import (
    BROKEN,
    ZOO_DISTRIBUTION,
    PluginRecord,
    RegisteredWrapper,
    default_registry,
    methods_of,
    shared_variants,
    standing,
)
from .._showing import Table, table
from .._tree import claims

SLOW_SECONDS = 1.0  # loading that takes longer is worth a look; the zoo takes a few hundredths
_UNCOMMON = "(others)"  # the layers of an adapter that claims no common Equinox layer
_LIBRARIES = ("jax", "jaxlib", "equinox", "pluggy", "importlib-metadata", "safetensors")


def plugins(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per plugin; the keys are stable."""
    attributes = ("name", "distribution", "version", "value", "status")
    return [
        {
            **{name: getattr(record, name) for name in attributes},
            "error": record.error
            and f"{type(record.error).__name__}: {record.error}".splitlines()[0],
            "seconds": round(record.seconds, 4),
            "wrappers": [wrapper.name for wrapper in record.wrappers],
        }
        for record in records
    ]


def plugins_as_table(plugins: list[dict[str, Any]]) -> Table:
    rows = (
        (
            *(plugin[name] for name in ("name", "distribution", "version")),
            ": ".join(filter(None, [plugin["status"], plugin["error"]])),
            f"{len(plugin['wrappers'])}",
            f"{plugin['seconds']:.2f}",
        )
        for plugin in plugins
    )
    texts = [(name, "left") for name in ("plugin", "distribution", "version", "status")]
    columns = [*texts, ("adapters", "right"), ("seconds", "right")]
    return table("1 plugin" if len(plugins) == 1 else f"{len(plugins)} plugins", columns, rows)


def adapters(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per adapter. `layers` are the common Equinox layers that it claims."""
    attributes = ("name", "qualified_name", "distribution", "version")
    layers = _common_layers()
    methods = methods_of(wrapper.cls for record in records for wrapper in record.wrappers)
    return [
        {
            **{name: getattr(wrapper, name) for name in attributes},
            "variant": wrapper.adapter.variant,
            "method": methods[wrapper.cls],
            "family": wrapper.cls.about.family,
            "auto": wrapper.cls.auto,
            "layers": [name for name, layer in layers.items() if claims(wrapper.cls, layer)],
            "formula": wrapper.cls.about.formula,
            "paper": wrapper.cls.about.paper,
        }
        for record in records
        for wrapper in record.wrappers
    ]


def _common_layers() -> dict[str, Any]:
    nn, key = eqx.nn, jax.random.key(0)
    layers = [nn.Linear(6, 4, key=key), nn.Conv1d(4, 5, 3, key=key), nn.Conv2d(4, 6, 3, key=key)]
    layers += [nn.ConvTranspose1d(4, 5, 3, key=key), nn.Embedding(9, 5, key=key)]
    layers += [nn.MultiheadAttention(2, 8, key=key), nn.GRUCell(4, 5, key=key)]
    layers += [nn.LSTMCell(4, 5, key=key), nn.LayerNorm(6)]
    return {type(layer).__name__: layer for layer in layers}


def adapters_as_table(adapters: list[dict[str, Any]]) -> Table:
    names = ("name", "variant", "layers", "parameters", "paper", "distribution")
    rows = (
        (
            adapter["name"],
            adapter["variant"] or "",
            ", ".join(adapter["layers"]) or _UNCOMMON,
            *(adapter[key] or "" for key in ("formula", "paper", "distribution")),
        )
        for adapter in adapters
    )
    return table(f"{len(adapters)} adapters", [(name, "left") for name in names], rows)


def methods_as_table(adapters: list[dict[str, Any]]) -> Table:
    families: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for adapter in adapters:
        methods = families.setdefault(adapter["family"] or "others", {})
        methods.setdefault((adapter["method"], adapter["formula"] or ""), []).append(adapter)
    rows: list[tuple[str, ...]] = []
    for family, methods in sorted(families.items()):
        rows.append((f"{family}:", "", "", ""))
        for (name, formula), group in sorted(methods.items(), key=lambda item: item[0][0]):
            rows.append((f"  {name}", formula, _few_layers(group), group[0]["paper"] or ""))
    columns = [(name, "left") for name in ("variant", "parameters", "layers (adapters)", "paper")]
    caption = "`jno-lora adapters VARIANT` lists the adapters of a variant."
    return table(f"{len(adapters)} adapters", columns, rows, caption)


def _few_layers(adapters: list[dict[str, Any]]) -> str:
    """The first common layers that the adapters of a method claim, and the number of adapters."""
    claimed = {layer for adapter in adapters for layer in adapter["layers"]}
    names = [re.sub(r"\dd$", "", layer) for layer in _common_layers() if layer in claimed]
    kinds = list(dict.fromkeys(names))
    shown = ", ".join([*kinds[:2], "..."] if len(kinds) > 2 else kinds) or _UNCOMMON
    return f"{shown} ({len(adapters)})"


def facts(
    records: tuple[PluginRecord, ...],
    commands: Mapping[str, PluginRecord],
    told: list[tuple[str, str]],
) -> str:
    """The versions of libraries, and each plugin with what it adds.

    - `commands`: the names of commands that plugins add, each with its plugin.
    - `told`: the facts that plugins know of.
    """
    lines = [*versions(), ("jno.lora imported from", next(iter(_package_path))), *told]
    for record in records:
        plugin = f"{record.distribution} {record.version}"
        lines.append((plugin, f"{record.status}, {record.seconds:.2f} s"))
        lines += ((f"  {kind}", names) for kind, names in _additions(record, commands))
    width = max(len(name) for name, _ in lines)
    wrap = functools.partial(
        textwrap.fill,
        width=100,
        subsequent_indent=(width + 2) * " ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrap(f"{name:<{width}}  {value}") for name, value in lines)


def versions() -> Iterator[tuple[str, str]]:
    """The versions of Python, of jno-lora, and of the libraries that it needs."""
    import importlib_metadata

    yield "Python", platform.python_version()
    for name in ("jno-lora", *_LIBRARIES):
        try:
            yield name, importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            yield name, "not installed as a distribution"


def told_by_plugins() -> tuple[list[tuple[str, str]], list[str]]:
    """The facts and the troubles that plugins know of."""
    facts: list[tuple[str, str]] = []
    troubles: list[str] = []
    for record, tell in default_registry().hooks("jno_lora_doctor"):
        try:
            tell(facts=facts, troubles=troubles)
        except Exception as err:
            troubles.append(f"The hook `jno_lora_doctor` of {record.describe()}: {err!r}")
    return facts, troubles


def _additions(
    record: PluginRecord, commands: Mapping[str, PluginRecord]
) -> Iterator[tuple[str, str]]:
    """Everything that a plugin adds: a kind, and names."""
    classes = [wrapper.cls for wrapper in record.wrappers]
    adapters, word = [cls.__name__ for cls in classes], "adapters"
    if len(adapters) > FEW:
        adapters = sorted({cls.variant or cls.__name__ for cls in classes})
        word = f"{len(classes)} adapters"
    names = {
        word: adapters,
        "hooks": sorted(hook.name for hook in record.hooks),
        "commands": [name for name, owner in commands.items() if owner is record],
        "statistics": sorted({key for cls in classes for key in statistic_keys(cls).values()}),
    }
    yield from ((kind, ", ".join(listed)) for kind, listed in names.items() if listed)


def troubles(records: tuple[PluginRecord, ...], left_out: list[str]) -> Iterator[str]:
    """A text for each problem, with what to do. `left_out` are lines about commands of plugins."""
    zoo = [record for record in records if record.distribution == ZOO_DISTRIBUTION]
    if not zoo:
        yield (
            "The adapter zoo is not installed, so `net.lora()` has no adapters to use. "
            'Install it: pip install "jno-lora[zoo]"'
        )
    elif all(record.status == "blocked" for record in zoo):
        yield f"`net.lora()` has no adapters to use: {zoo[0].error}"
    for record in records:
        plugin = f"The plugin {record.describe()}"
        if record.status in BROKEN:
            yield (
                f"{plugin} cannot be used ({record.status}). Upgrade or uninstall it, or block it "
                f"with JNO_LORA_BLOCK={record.distribution}.\n"
                + "".join(traceback.format_exception(record.error))
            )
        if record.seconds > SLOW_SECONDS:
            yield (
                f"{plugin} took {record.seconds:.1f} s to load; more than {SLOW_SECONDS:g} s is "
                "slow. Its entry point should import nothing heavy."
            )
    for name, owners in default_registry().clashes().items():
        yield f'The name of {name} also belongs to {owners}. Write `wrapper="{name}"`.'
    layers = _common_layers()
    for adapters_of_variant in shared_variants(records):
        yield from _variant_troubles(adapters_of_variant, layers)
    yield from (f"Left out of the command line: {line}" for line in left_out)


def _variant_troubles(
    adapters: list[RegisteredWrapper], layers: Mapping[str, Any]
) -> Iterator[str]:
    """The troubles with one variant of several distributions, whose adapters these are.

    - `layers`: the common Equinox layers by name.
    """
    spellings = {wrapper.adapter.variant: wrapper.distribution for wrapper in reversed(adapters)}
    if len(spellings) > 1:
        words = ", ".join(f"{variant!r} ({origin})" for variant, origin in spellings.items())
        yield f"These variants are one variant, because case and dashes do not count: {words}."
    for name, layer in layers.items():
        rivals = [wrapper for wrapper in adapters if claims(wrapper.cls, layer)]
        if len({wrapper.distribution for wrapper in rivals}) < 2:
            continue
        names = ", ".join(wrapper.qualified_name for wrapper in rivals)
        is_tie = standing(rivals[0]) == standing(rivals[1])
        effect = "is an error" if is_tie else f"chooses {rivals[0].qualified_name}"
        word = adapters[0].adapter.variant
        yield (
            f'Several plugins adapt {name} with the variant "{word}": {names}. There, '
            f'`wrapper="{word}"` {effect}. To get one of the adapters, name it: '
            f'`wrapper="{rivals[-1].qualified_name}"`.'
        )
        return  # the plugins clash on similar layers as well

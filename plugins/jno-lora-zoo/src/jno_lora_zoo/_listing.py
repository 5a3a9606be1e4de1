"""`jno-lora adapters`: the methods and adapters of all installed plugins."""

import json
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import click
import equinox as eqx
import jax

from jno.lora import LoRAWrapper, PluginRecord, Table
from jno.lora.extending import Composite, default_registry, print_table, safely_applies, table

Listed: TypeAlias = dict[str, Any]  # the facts about an adapter, as JSON holds them
_UNCOMMON = "(others)"  # the layers of an adapter that claims no common Equinox layer


@click.command()
@click.argument("variant", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
def adapters(variant: str | None, as_json: bool) -> None:
    """List the methods by family, or the adapters of one VARIANT (or class name)."""
    listed = installed_adapters(default_registry().loaded())
    if variant is not None:
        names = {cls.__name__ for cls in default_registry().resolve(variant)}
        listed = [adapter for adapter in listed if adapter["name"] in names]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
    else:
        print_table(methods_as_table(listed) if variant is None else adapters_as_table(listed))


def installed_adapters(records: tuple[PluginRecord, ...]) -> list[Listed]:
    """One JSON object per adapter. `layers` are the common Equinox layers that it claims."""
    layers = _common_layers()
    # `lora` does not make composites.
    wrappers = [
        w for record in records for w in record.wrappers if not issubclass(w.cls, Composite)
    ]
    methods = _methods_of(wrapper.cls for wrapper in wrappers)
    return [
        {
            "name": wrapper.name,
            "qualified_name": wrapper.qualified_name,
            "distribution": wrapper.distribution,
            "version": wrapper.version,
            "variant": wrapper.adapter.variant,
            "method": methods[wrapper.cls],
            "family": wrapper.cls.about.family,
            "auto": wrapper.cls.auto,
            "layers": [name for name, x in layers.items() if safely_applies(wrapper.cls, x)],
            "formula": wrapper.cls.about.formula,
            "paper": wrapper.cls.about.paper,
        }
        for wrapper in wrappers
    ]


def _methods_of(classes: Iterable[type[LoRAWrapper]]) -> dict[type[LoRAWrapper], str]:
    """The name of each adapter's method: the shortest variant with its paper and formula."""
    names: dict[object, str] = {}
    keys: dict[type[LoRAWrapper], object] = {}
    for cls in classes:
        about, variant = cls.about, cls.variant or cls.__name__
        keys[cls] = (about.paper, about.formula) if about.paper else variant
        names[keys[cls]] = min(names.get(keys[cls], variant), variant, key=len)
    return {cls: names[key] for cls, key in keys.items()}


def _common_layers() -> dict[str, eqx.Module]:
    """Small examples of common Equinox layers, by the names of their classes."""
    nn, key = eqx.nn, jax.random.key(0)
    layers = [nn.Linear(6, 4, key=key), nn.Conv1d(4, 5, 3, key=key), nn.Conv2d(4, 6, 3, key=key)]
    layers += [nn.ConvTranspose1d(4, 5, 3, key=key), nn.Embedding(9, 5, key=key)]
    layers += [nn.MultiheadAttention(2, 8, key=key), nn.GRUCell(4, 5, key=key)]
    layers += [nn.LSTMCell(4, 5, key=key), nn.LayerNorm(6)]
    return {type(layer).__name__: layer for layer in layers}


def adapters_as_table(adapters: list[Listed]) -> Table:
    names = ("name", "variant", "layers", "parameters", "paper", "distribution")
    rows: list[tuple[str, ...]] = []
    for adapter in adapters:
        layers = ", ".join(adapter["layers"]) or _UNCOMMON
        facts = (adapter[key] or "" for key in ("formula", "paper", "distribution"))
        rows.append((adapter["name"], adapter["variant"] or "", layers, *facts))
    return table(f"{len(adapters)} adapters", [(name, "left") for name in names], rows)


def methods_as_table(adapters: list[Listed]) -> Table:
    methods: dict[tuple[str, str, str], list[Listed]] = {}
    for adapter in adapters:
        key = (adapter["family"] or "others", adapter["method"], adapter["formula"] or "")
        methods.setdefault(key, []).append(adapter)
    rows: list[tuple[str, ...]] = []
    for family, name, formula in sorted(methods):
        heading = (f"{family}:", "", "", "")
        if heading not in rows:
            rows.append(heading)
        group = methods[family, name, formula]
        rows.append((f"  {name}", formula, _few_layers(group), group[0]["paper"] or ""))
    columns = [(name, "left") for name in ("variant", "parameters", "layers (adapters)", "paper")]
    caption = "`jno-lora adapters VARIANT` lists the adapters of a variant."
    return table(f"{len(adapters)} adapters", columns, rows, caption)


def _few_layers(adapters: list[Listed]) -> str:
    """The first common layers that the adapters of a method claim, and the number of adapters."""
    claimed = (layer for adapter in adapters for layer in adapter["layers"])
    kinds = list(dict.fromkeys(re.sub(r"\dd$", "", layer) for layer in claimed))
    shown = ", ".join([*kinds[:2], "..."] if len(kinds) > 2 else kinds) or _UNCOMMON
    return f"{shown} ({len(adapters)})"

"""`jno-lora plugins` and `jno-lora adapters`: the installed plugins and their adapters."""

from typing import Any

import jax

from .._registry import PluginRecord, RegisteredWrapper
from .._showing import Table, table
from .._tree import claims
from ..testing import standard_layers


def plugins(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per plugin; the keys are stable."""
    return list(map(_plugin, records))


def _plugin(record: PluginRecord) -> dict[str, Any]:
    error = record.error and f"{type(record.error).__name__}: {record.error}".splitlines()[0]
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "value": record.value,
        "status": record.status,
        "error": error,
        "seconds": round(record.seconds, 4),
        "wrappers": [wrapper.name for wrapper in record.wrappers],
    }


def plugins_as_table(found: list[dict[str, Any]]) -> Table:
    """The same as a table."""

    def row(plugin: dict[str, Any]) -> tuple[str, ...]:
        status = ": ".join(filter(None, [plugin["status"], plugin["error"]]))
        counts = (f"{len(plugin['wrappers'])}", f"{plugin['seconds']:.2f}")
        return (plugin["name"], plugin["distribution"], plugin["version"], status, *counts)

    texts = [(name, "left") for name in ("plugin", "distribution", "version", "status")]
    columns = [*texts, ("adapters", "right"), ("seconds", "right")]
    return table(f"{len(found)} plugins", columns, map(row, found))


def adapters(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per usable adapter; the keys are stable."""
    layers = {name: make(jax.random.key(0)) for name, (make, _) in standard_layers().items()}
    usable = (record for record in records if record.usable)
    return [_adapter(wrapper, layers) for record in usable for wrapper in record.wrappers]


def adapters_as_table(found: list[dict[str, Any]]) -> Table:
    """The same as a table."""

    def row(adapter: dict[str, Any]) -> tuple[str, ...]:
        layers = ", ".join(adapter["layers"])
        texts = (adapter[key] or "" for key in ("formula", "paper", "distribution"))
        return (adapter["name"], adapter["variant"] or "", layers, *texts)

    names = ("name", "variant", "layers", "parameters", "paper", "distribution")
    return table(f"{len(found)} adapters", [(name, "left") for name in names], map(row, found))


def _adapter(wrapper: RegisteredWrapper, layers: dict[str, Any]) -> dict[str, Any]:
    cls = wrapper.cls
    return {
        "name": wrapper.name,
        "qualified_name": wrapper.qualified_name,
        "distribution": wrapper.distribution,
        "version": wrapper.version,
        "variant": cls.variant,
        "auto": cls.auto,
        "layers": [name for name, layer in layers.items() if claims(cls, layer)],
        "formula": cls.formula,
        "paper": cls.paper,
    }

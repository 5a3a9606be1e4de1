"""`jno-lora plugins` and `jno-lora adapters`: as JSON, whose keys are stable, and as tables."""

from typing import Any

import jax

from .._registry import PluginRecord
from .._showing import Table, table
from .._tree import claims
from ..testing import standard_layers


def plugins(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One object per plugin."""
    same = ("name", "distribution", "version", "value", "status")
    return [
        {
            **{name: getattr(record, name) for name in same},
            "error": record.error
            and f"{type(record.error).__name__}: {record.error}".splitlines()[0],
            "seconds": round(record.seconds, 4),
            "wrappers": [wrapper.name for wrapper in record.wrappers],
        }
        for record in records
    ]


def plugins_as_table(found: list[dict[str, Any]]) -> Table:
    """A line per plugin."""
    rows = (
        (
            *(it[name] for name in ("name", "distribution", "version")),
            ": ".join(filter(None, [it["status"], it["error"]])),
            f"{len(it['wrappers'])}",
            f"{it['seconds']:.2f}",
        )
        for it in found
    )
    texts = [(name, "left") for name in ("plugin", "distribution", "version", "status")]
    columns = [*texts, ("adapters", "right"), ("seconds", "right")]
    return table(f"{len(found)} plugins", columns, rows)


def adapters(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One object per usable adapter. `layers` are the common Equinox layers that it claims."""
    layers = {name: make(jax.random.key(0)) for name, (make, _) in standard_layers().items()}
    of_wrapper = ("name", "qualified_name", "distribution", "version")
    return [
        {
            **{name: getattr(wrapper, name) for name in of_wrapper},
            "variant": wrapper.cls.variant,
            "auto": wrapper.cls.auto,
            "layers": [name for name, layer in layers.items() if claims(wrapper.cls, layer)],
            "formula": wrapper.cls.formula,
            "paper": wrapper.cls.paper,
        }
        for record in records
        for wrapper in record.wrappers
    ]


def adapters_as_table(found: list[dict[str, Any]]) -> Table:
    """A line per adapter. One that claims no common layer is for layers that others define."""
    names = ("name", "variant", "layers", "parameters", "paper", "distribution")
    rows = (
        (
            it["name"],
            it["variant"] or "",
            ", ".join(it["layers"]) or "(others)",
            *(it[key] or "" for key in ("formula", "paper", "distribution")),
        )
        for it in found
    )
    return table(f"{len(found)} adapters", [(name, "left") for name in names], rows)

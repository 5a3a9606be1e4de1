"""`jno-lora plugins` and `jno-lora adapters`: what is installed."""

import traceback
from typing import Any

import jax

from .._registry import PluginRecord, RegisteredWrapper
from .._showing import Table, table
from .._tree import claims
from ..testing import standard_layers


def plugins_as_json(found: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One object per plugin; the keys are stable."""
    return [
        {
            "name": record.name,
            "distribution": record.distribution,
            "version": record.version,
            "value": record.value,
            "status": record.status,
            "error": error_line(record),
            "seconds": round(record.seconds, 4),
            "wrappers": [wrapper.name for wrapper in record.wrappers],
        }
        for record in found
    ]


def plugins_as_table(found: tuple[PluginRecord, ...]) -> Table:
    """The same for people."""
    columns = [("plugin", "left"), ("distribution", "left"), ("version", "left")]
    return table(
        f"{len(found)} plugins",
        [*columns, ("status", "left"), ("adapters", "right"), ("seconds", "right")],
        (
            (
                record.name,
                record.distribution,
                record.version,
                record.status if record.error is None else f"{record.status}: {error_line(record)}",
                f"{len(record.wrappers)}",
                f"{record.seconds:.2f}",
            )
            for record in found
        ),
    )


def adapters_as_json(found: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One object per usable adapter; the keys are stable."""
    layers = {name: make(jax.random.key(0)) for name, (make, _) in standard_layers().items()}
    return [
        _adapter(wrapper, layers)
        for record in found
        if record.usable
        for wrapper in record.wrappers
    ]


def adapters_as_table(adapters: list[dict[str, Any]]) -> Table:
    """The same for people."""
    columns = ("name", "variant", "layers", "parameters", "paper", "distribution")
    return table(
        f"{len(adapters)} adapters",
        [(column, "left") for column in columns],
        (
            (
                adapter["name"],
                adapter["variant"] or "",
                ", ".join(adapter["layers"]),
                adapter["formula"] or "",
                adapter["paper"] or "",
                adapter["distribution"],
            )
            for adapter in adapters
        ),
    )


def error_line(record: PluginRecord) -> str | None:
    """The record's error in one line."""
    if record.error is None:
        return None
    return f"{type(record.error).__name__}: {record.error}".splitlines()[0]


def error_traceback(record: PluginRecord) -> str:
    """The record's error with its traceback."""
    return "" if record.error is None else "".join(traceback.format_exception(record.error))


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

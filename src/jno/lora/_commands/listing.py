"""`jno-lora plugins` and `jno-lora adapters`: the installed plugins and their adapters."""

from typing import Any

import jax

from .._registry import PluginRecord, RegisteredWrapper
from .._showing import Table, table
from .._tree import claims
from ..testing import standard_layers


def plugins(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per plugin; the keys are stable."""
    return [
        {
            "name": record.name,
            "distribution": record.distribution,
            "version": record.version,
            "value": record.value,
            "status": record.status,
            "error": _error_line(record.error),
            "seconds": round(record.seconds, 4),
            "wrappers": [wrapper.name for wrapper in record.wrappers],
        }
        for record in records
    ]


def plugins_as_table(found: list[dict[str, Any]]) -> Table:
    """The same as a table."""
    texts = [(name, "left") for name in ("plugin", "distribution", "version", "status")]
    return table(
        f"{len(found)} plugins",
        [*texts, ("adapters", "right"), ("seconds", "right")],
        (
            (
                *(plugin["name"], plugin["distribution"], plugin["version"]),
                ": ".join(filter(None, [plugin["status"], plugin["error"]])),
                f"{len(plugin['wrappers'])}",
                f"{plugin['seconds']:.2f}",
            )
            for plugin in found
        ),
    )


def adapters(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per usable adapter; the keys are stable."""
    layers = {name: make(jax.random.key(0)) for name, (make, _) in standard_layers().items()}
    usable = (record for record in records if record.usable)
    return [_adapter(wrapper, layers) for record in usable for wrapper in record.wrappers]


def adapters_as_table(found: list[dict[str, Any]]) -> Table:
    """The same as a table."""
    columns = ("name", "variant", "layers", "parameters", "paper", "distribution")
    return table(
        f"{len(found)} adapters",
        [(column, "left") for column in columns],
        (
            (
                *(adapter["name"], adapter["variant"] or "", ", ".join(adapter["layers"])),
                *(adapter["formula"] or "", adapter["paper"] or "", adapter["distribution"]),
            )
            for adapter in found
        ),
    )


def _error_line(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]


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

"""`jno-lora plugins`: the installed plugins."""

from typing import Any

from .._registry import PluginRecord
from .._showing import Table, table


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

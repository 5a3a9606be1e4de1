"""`jno-lora plugins`: the installed plugins."""

import contextlib
from typing import Any

import importlib_metadata

from .._registry.plugins import PluginRecord, first_party
from .._showing.tables import Table, table


def plugins(records: tuple[PluginRecord, ...]) -> list[dict[str, Any]]:
    """One JSON object per plugin; the keys are stable.

    Distributions of this project without an entry point come last: users import them themselves.
    """
    attributes = ("name", "distribution", "version", "value", "status")
    found = [
        {
            **{name: getattr(record, name) for name in attributes},
            "error": record.error
            and f"{type(record.error).__name__}: {record.error}".splitlines()[0],
            "seconds": round(record.seconds, 4),
            "wrappers": [wrapper.name for wrapper in record.wrappers],
        }
        for record in records
    ]
    nothing = {"error": None, "seconds": 0.0, "wrappers": list[str]()}
    for name in sorted(first_party() - {record.distribution for record in records}):
        with contextlib.suppress(importlib_metadata.PackageNotFoundError):
            facts = ("", name, importlib_metadata.version(name), "", "to import")
            found.append({**dict(zip(attributes, facts, strict=True)), **nothing})
    return found


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

"""`jno-lora inspect`: the contents of a file of adapters, without a model and its plugins."""

import math
from collections.abc import Callable
from typing import Any

from .._checkpoint import Contents, Entry, FilePath, read
from .._compute import count_non_finite
from .._paths import show_path
from .._showing import Table, table

_COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "path": ("left", lambda it: show_path(it["path"])),
    "layer": ("left", lambda it: it["layer"]["class"]),
    "adapter": ("left", lambda it: it["wrapper"]),
    "distribution": ("left", lambda it: it["distribution"] or "(no plugin)"),
    "version": ("left", lambda it: it["version"]),
    "rank": ("right", lambda it: "" if it["rank"] is None else f"{it['rank']}"),
    "alpha": ("right", lambda it: "" if it["alpha"] is None else f"{it['alpha']:g}"),
    "arrays": ("right", lambda it: f"{len(it['arrays'])}"),
    "numbers": ("right", lambda it: f"{it['numbers']:,}"),
    "bytes": ("right", lambda it: f"{it['bytes']:,}"),
    # The start of the hash, behind the name of its algorithm.
    "base values": ("left", lambda it: (it["base_values"] or "").rpartition(":")[2][:8]),
    "NaN or inf": ("right", lambda it: f"{it.get('non_finite', 0):,}"),  # if values were read
}


def inspect(file: FilePath, *, values: bool) -> dict[str, Any]:
    """The file as JSON; the keys are stable. With `values`, count what is NaN or infinite."""
    contents = read(file, values=values)
    bad = {name: count_non_finite(array) for name, array in contents.values.items()}
    adapters = [_adapter(entry, contents, bad) for entry in contents.configuration.entries]
    shared = contents.configuration.shared_tensors
    tensors = {name: contents.tensors[tensor] for name, tensor in shared.items()}
    found = {
        "file": str(file),
        "format_version": contents.configuration.format_version,
        "versions": contents.configuration.versions,
        "adapters": adapters,
        "arrays": sum(len(adapter["arrays"]) for adapter in adapters) + len(tensors),
        "numbers": sum(adapter["numbers"] for adapter in adapters)
        + sum(math.prod(it.shape) for it in tensors.values()),
        "bytes": contents.nbytes,
    }
    if tensors:
        found["shared"] = {
            name: {"shape": it.shape, "dtype": str(it.dtype), "bytes": it.nbytes}
            for name, it in tensors.items()
        }
    return found | ({"non_finite": sum(bad.values())} if values else {})


def as_table(found: dict[str, Any]) -> Table:
    """The same as a table."""
    columns = _COLUMNS if "non_finite" in found else dict(list(_COLUMNS.items())[:-1])
    caption = [
        f"{found['arrays']} arrays, {found['numbers']:,} numbers, {found['bytes']:,} bytes",
        *(f"shared: {name} {list(it['shape'])}" for name, it in found.get("shared", {}).items()),
        f"format {found['format_version']}",
        *(f"{library} {version}" for library, version in found["versions"].items()),
    ]
    return table(
        f"{len(found['adapters'])} adapters",
        [(name, justify) for name, (justify, _) in columns.items()],
        ([show(adapter) for _, show in columns.values()] for adapter in found["adapters"]),
        caption=", ".join(caption),
    )


def _adapter(entry: Entry, contents: Contents, bad: dict[str, int]) -> dict[str, Any]:
    tensors = {name: contents.tensors[tensor] for name, tensor in entry.tensors.items()}
    arrays = {
        name: {"shape": it.shape, "dtype": str(it.dtype), "bytes": it.nbytes}
        for name, it in tensors.items()
    }
    found = {"path": entry.path, **entry.as_json(), "arrays": arrays}
    found["numbers"] = sum(math.prod(tensor.shape) for tensor in tensors.values())
    found["bytes"] = sum(tensor.nbytes for tensor in tensors.values())
    if bad:
        found["non_finite"] = sum(bad[tensor] for tensor in entry.tensors.values())
    return found

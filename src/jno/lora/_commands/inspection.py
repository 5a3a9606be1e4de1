"""`jno-lora inspect`: the contents of a file of adapters, without a model and its plugins."""

import math
from typing import Any

from .._checkpoint import Contents, Entry, FilePath, read
from .._compute import count_non_finite
from .._paths import show_path
from .._showing import Table, table


def inspect(file: FilePath, *, values: bool) -> dict[str, Any]:
    """The file as JSON; the keys are stable.

    **Arguments:**

    - `values`: whether to read the arrays, to count what is NaN or infinite.

    **Raises:** `CheckpointError` if the file is damaged, or not one of jno-lora.
    """
    contents = read(file, values=values)
    bad = {name: count_non_finite(array) for name, array in contents.values.items()}
    adapters = [_adapter(entry, contents, bad) for entry in contents.configuration.entries]
    arrays = [array for adapter in adapters for array in adapter["arrays"].values()]
    found = {
        "file": str(file),
        "format_version": contents.configuration.format_version,
        "versions": contents.configuration.versions,
        "adapters": adapters,
        "arrays": len(arrays),
        "numbers": sum(adapter["numbers"] for adapter in adapters),
        "bytes": contents.nbytes,
    }
    return found | ({"non_finite": sum(bad.values())} if values else {})


def as_table(found: dict[str, Any]) -> Table:
    """The same as a table."""
    values = "non_finite" in found
    texts = ("path", "layer", "adapter", "distribution", "version")
    numbers = ("rank", "alpha", "arrays", "numbers", "bytes", "NaN or inf")
    columns = [(name, "left") for name in texts] + [(name, "right") for name in numbers]
    caption = [
        f"{found['arrays']} arrays, {found['numbers']:,} numbers, {found['bytes']:,} bytes",
        f"format {found['format_version']}",
        *(f"{library} {version}" for library, version in found["versions"].items()),
    ]
    return table(
        f"{len(found['adapters'])} adapters",
        columns if values else columns[:-1],
        (_row(adapter)[: None if values else -1] for adapter in found["adapters"]),
        caption=", ".join(caption),
    )


def _row(adapter: dict[str, Any]) -> tuple[str, ...]:
    return (
        show_path(adapter["path"]),
        adapter["layer"]["class"],
        adapter["wrapper"],
        adapter["distribution"] or "(no plugin)",
        adapter["version"],
        "" if adapter["rank"] is None else f"{adapter['rank']}",
        "" if adapter["alpha"] is None else f"{adapter['alpha']:g}",
        f"{len(adapter['arrays'])}",
        f"{adapter['numbers']:,}",
        f"{adapter['bytes']:,}",
        f"{adapter.get('non_finite', 0):,}",
    )


def _adapter(entry: Entry, contents: Contents, bad: dict[str, int]) -> dict[str, Any]:
    tensors = {name: contents.tensors[tensor] for name, tensor in entry.tensors.items()}
    found = {
        "path": entry.path,
        **entry.as_json(),
        "arrays": {
            name: {"shape": t.shape, "dtype": str(t.dtype), "bytes": t.nbytes}
            for name, t in tensors.items()
        },
        "numbers": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }
    if bad:
        found["non_finite"] = sum(bad[tensor] for tensor in entry.tensors.values())
    return found

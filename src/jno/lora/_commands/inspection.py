"""`jno-lora inspect`: the contents of a file of adapters, without a model and its plugins."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._checkpoint import EXTENSION, SHARED, Contents, FilePath, read, to_json
from .._compute import count_non_finite
from .._paths import show_path
from .._showing import Table, table

_COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "path": ("left", lambda adapter: show_path(adapter["path"])),
    "layer": ("left", lambda adapter: adapter["layer"]["class"]),
    "adapter": ("left", lambda adapter: _members(adapter, "wrapper", named=True)),
    "distribution": ("left", lambda adapter: _members(adapter, "distribution") or "(no plugin)"),
    "version": ("left", lambda adapter: _members(adapter, "version")),
    "rank": ("right", lambda adapter: _members(adapter, "rank")),
    "alpha": ("right", lambda adapter: _members(adapter, "alpha")),
    "arrays": ("right", lambda adapter: f"{len(adapter['arrays'])}"),
    "numbers": ("right", lambda adapter: f"{adapter['numbers']:,}"),
    "bytes": ("right", lambda adapter: f"{adapter['bytes']:,}"),
    # The start of the hash, behind the name of its algorithm.
    "base values": ("left", lambda adapter: (adapter["base_values"] or "").rpartition(":")[2][:8]),
}
_WIDTH, _LINES = 200, 20
_NON_FINITE = {"NaN or inf": ("right", lambda adapter: f"{adapter.get('non_finite', 0):,}")}


def inspect(file: FilePath, *, values: bool) -> dict[str, Any]:
    """The file as JSON; the keys are stable. With `values`, count values that are not finite."""
    contents = read(file, values=values)
    configuration = contents.configuration
    arrays = contents.container.arrays if values else {}
    non_finite = {name: count_non_finite(array) for name, array in arrays.items()}
    adapters = [_adapter(path, contents, non_finite) for path in configuration.adapters]
    shared = _named(configuration.tensors[SHARED], contents)
    extension = _named(configuration.tensors[EXTENSION], contents)
    tensors = [*shared.values(), *extension.values()]
    facts = {
        "file": str(file),
        "format_version": configuration.format_version,
        "versions": configuration.versions,
        "adapters": adapters,
        "arrays": sum(len(adapter["arrays"]) for adapter in adapters) + len(tensors),
        "numbers": sum(adapter["numbers"] for adapter in adapters) + _size(tensors),
        "bytes": contents.container.nbytes,
    }
    if shared:
        facts["shared"] = _described(shared)
    if configuration.metadata:
        facts["metadata"] = configuration.metadata
    if configuration.extension is not None:
        facts["extension"] = dataclasses.asdict(configuration.extension) | {
            "arrays": _described(extension),
            "numbers": _size(extension.values()),
        }
    if values:
        facts["non_finite"] = sum(non_finite.values())
    return facts


def as_table(facts: dict[str, Any]) -> Table:
    columns = _COLUMNS | (_NON_FINITE if "non_finite" in facts else {})
    shared = facts.get("shared", {})
    caption = [
        f"{facts['arrays']} arrays, {facts['numbers']:,} numbers, {facts['bytes']:,} bytes",
        *(f"shared: {name} {list(array['shape'])}" for name, array in shared.items()),
        f"format {facts['format_version']}",
        *(f"{library} {version}" for library, version in facts["versions"].items()),
    ]
    lines = [", ".join(caption), *_extended(facts), *_shown("metadata", facts.get("metadata", {}))]
    names = [(name, justify) for name, (justify, _) in columns.items()]
    rows = ([show(adapter) for _, show in columns.values()] for adapter in facts["adapters"])
    kind = facts["extension"]["kind"] if "extension" in facts else "adapters"
    return table(f"{len(facts['adapters'])} {kind}", names, rows, "\n".join(lines))


def _extended(facts: dict[str, Any]) -> Iterator[str]:
    if extension := facts.get("extension"):
        yield (
            f"{extension['distribution']}: {len(extension['arrays'])} arrays, "
            f"{extension['numbers']:,} numbers, read by {extension['reader']}"
        )
        yield from _shown(extension["distribution"], extension["content"])


def _shown(what: str, values: dict[str, Any]) -> Iterator[str]:
    """A line of JSON for each of the first values. Long lines are cut: `--json` has all."""
    for name, value in itertools.islice(values.items(), _LINES):
        line = f"{what}: {name} = {json.dumps(value, ensure_ascii=False)}"
        yield line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."
    if len(values) > _LINES:
        yield f"{what}: {len(values) - _LINES} more values, which `--json` shows"


def _named(names: dict[str, str], contents: Contents) -> dict[str, Any]:
    return {name: contents.container.arrays[tensor] for name, tensor in names.items()}


def _adapter(path: str, contents: Contents, non_finite: dict[str, int]) -> dict[str, Any]:
    names = contents.configuration.tensors[path]
    tensors = _named(names, contents)
    entry = to_json(contents.configuration.adapters[path])
    facts = {"path": path, **entry, "arrays": _described(tensors)}
    facts["numbers"] = _size(tensors.values())
    facts["bytes"] = sum(tensor.nbytes for tensor in tensors.values())
    if non_finite:
        facts["non_finite"] = sum(non_finite[tensor] for tensor in names.values())
    return facts


def _described(tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": tensor.shape, "dtype": str(tensor.dtype), "bytes": tensor.nbytes}
        for name, tensor in tensors.items()
    }


def _size(tensors: Iterable[Any]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _members(adapter: dict[str, Any], key: str, *, named: bool = False) -> str:
    """The value of an adapter, or the values of the members of a sum."""
    members = adapter.get("members", {"": adapter})
    shown = {name: _shown_value(member[key]) for name, member in members.items()}
    if not named:
        return ", ".join(dict.fromkeys(shown.values()))
    return " + ".join(f"{name}: {value}" if name else value for name, value in shown.items())


def _shown_value(value: str | float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

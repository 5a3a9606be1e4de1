"""`jno-lora inspect`: the contents of a file of adapters, without a model and its plugins."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from .._checkpoint.file import FilePath
from .._checkpoint.format import EXTENSION, FORMAT_VERSION, SHARED, to_json
from .._checkpoint.reading import Contents, read
from .._compute.precision import count_non_finite
from .._paths import show_path
from .._showing.tables import Table, table

Facts: TypeAlias = dict[str, Any]  # JSON

_WIDTH, _LINES = 200, 20


def inspect(file: FilePath, *, values: bool) -> Facts:
    """The file as JSON; the keys are stable. With `values`, count values that are not finite."""
    contents = read(file, values=values)
    _, configuration, tensors = contents
    arrays = tensors if values else {}
    non_finite = {name: count_non_finite(array) for name, array in arrays.items()}
    facts = {
        "file": str(file),
        "format_version": FORMAT_VERSION,
        "versions": configuration.versions,
        "adapters": [
            {"path": path, **to_json(entry), **_arrays(path, contents, non_finite)}
            for path, entry in configuration.adapters.items()
        ],
        "arrays": len(tensors),
        "numbers": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "bytes": os.path.getsize(file),
    }
    if shared := _arrays(SHARED, contents, {})["arrays"]:
        facts["shared"] = shared
    if configuration.metadata:
        facts["metadata"] = configuration.metadata
    if configuration.extension is not None:
        arrays = _arrays(EXTENSION, contents, {})
        facts["extension"] = {**dataclasses.asdict(configuration.extension), **arrays}
    if values:
        facts["non_finite"] = sum(non_finite.values())
    return facts


def _arrays(key: str, contents: Contents, non_finite: Mapping[str, int]) -> Facts:
    """The arrays of an adapter, or of `SHARED` or `EXTENSION`, and how large they are together."""
    tensors, names = contents.tensors, contents.configuration.tensors[key]
    arrays = {
        name: {
            "shape": tensors[tensor].shape,
            "dtype": str(tensors[tensor].dtype),
            "bytes": tensors[tensor].nbytes,
        }
        for name, tensor in names.items()
    }
    facts: Facts = {
        "arrays": arrays,
        "numbers": sum(math.prod(array["shape"]) for array in arrays.values()),
        "bytes": sum(array["bytes"] for array in arrays.values()),
    }
    if non_finite:
        facts["non_finite"] = sum(non_finite[tensor] for tensor in names.values())
    return facts


def as_table(facts: Facts) -> Table:
    columns = [(name, "left") for name in ("path", "layer", "adapter", "distribution", "version")]
    columns += [(name, "right") for name in ("rank", "alpha", "arrays", "numbers", "bytes")]
    columns.append(("base values", "left"))
    if "non_finite" in facts:
        columns.append(("NaN or inf", "right"))
    rows = (
        (
            show_path(adapter["path"]),
            adapter["layer"]["class"],
            _class_in(adapter),
            _values(adapter, "distribution") or "(no plugin)",
            *(_values(adapter, key) for key in ("version", "rank", "alpha")),
            f"{len(adapter['arrays'])}",
            *(f"{adapter[key]:,}" for key in ("numbers", "bytes")),
            # The start of the hash, behind the name of its algorithm.
            (adapter["base_values"] or "").rpartition(":")[2][:8],
            f"{adapter.get('non_finite', 0):,}",
        )[: len(columns)]
        for adapter in facts["adapters"]
    )
    shared = facts.get("shared", {})
    caption = [
        f"{facts['arrays']} arrays, {facts['numbers']:,} numbers, {facts['bytes']:,} bytes",
        *(f"shared: {name} {list(array['shape'])}" for name, array in shared.items()),
        f"format {facts['format_version']}",
        *(f"{library} {version}" for library, version in facts["versions"].items()),
    ]
    lines, kind = [", ".join(caption)], "adapters"
    if extension := facts.get("extension"):
        kind, origin = extension["kind"], extension["distribution"]
        arrays = f"{len(extension['arrays'])} arrays, {extension['numbers']:,} numbers"
        lines += [f"{origin}: {arrays}, read by {extension['reader']}"]
        lines += _shown(origin, extension["content"])
    lines += _shown("metadata", facts.get("metadata", {}))
    return table(f"{len(facts['adapters'])} {kind}", columns, rows, "\n".join(lines))


def _shown(what: str, values: Facts) -> Iterator[str]:
    """A line of JSON for each of the first values, cut to a width: `--json` has all."""
    for name, value in itertools.islice(values.items(), _LINES):
        line = f"{what}: {name} = {json.dumps(value, ensure_ascii=False)}"
        yield line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."
    if len(values) > _LINES:
        yield f"{what}: {len(values) - _LINES} more values, which `--json` shows"


def _class_in(adapter: Facts) -> str:
    """The name of an adapter's class, with its members."""
    members = adapter.get("members", {}).items()
    shown = " + ".join(f"{name}: {_class_in(member)}" for name, member in members)
    return f"{adapter['wrapper']}({shown})" if shown else adapter["wrapper"]


def _values(adapter: Facts, key: str) -> str:
    """The values of an adapter and its members, each once."""
    members = adapter.get("members", {}).values()
    shown = [_shown_value(adapter[key]), *(_values(member, key) for member in members)]
    return ", ".join(dict.fromkeys(filter(None, shown)))


def _shown_value(value: str | float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

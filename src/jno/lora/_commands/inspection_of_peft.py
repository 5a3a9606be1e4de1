"""`jno-lora inspect`: an adapter of PEFT, in a directory or in a repository of the Hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

from .._showing import Table, table

_WIDTH = 200
# An owner and a name. What begins with a dot or a slash is a path.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_of_peft(place: str) -> bool:
    """Whether `place` is a directory, or may be a repository: the name of no file that is here."""
    path = Path(place)
    is_name = _NAME.fullmatch(place) is not None and path.suffix != ".safetensors"
    return path.is_dir() or (is_name and not os.path.lexists(path))


def inspect(place: str, revision: str | None, *, values: bool) -> dict[str, Any]:
    """The adapter as JSON; the keys are stable."""
    from ..peft import inspect_peft  # a plugin, which may be missing

    return inspect_peft(place, revision=revision, values=values)


def as_table(facts: dict[str, Any]) -> Table:
    rows = [
        (
            _text(module["module"]) or "<root>",
            *("; ".join(words) for words in _arrays(module["arrays"])),
            f"{module['numbers']:,}",
            f"{module['bytes']:,}",
        )
        for module in facts["modules"]
    ]
    columns = [(name, "left") for name in ("module", "arrays", "dtype")]
    columns += [(name, "right") for name in ("numbers", "bytes")]
    title = f"PEFT {_text(str(facts['peft_type']))}, {len(facts['modules'])} modules"
    return table(title, columns, rows, "\n".join(_lines(facts)))


def _arrays(arrays: dict[str, Any]) -> tuple[list[str], list[str]]:
    shapes = [f"{_text(name)} {array['shape']}" for name, array in arrays.items()]
    return shapes, sorted({array["dtype"] for array in arrays.values()})


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['arrays']} arrays, {facts['numbers']:,} numbers, {facts['bytes']:,} bytes"]
    if facts["revision"] is not None:
        lines.append(f"{facts['directory']} at revision {facts['revision']}")
    lines += [f"shared: {_text(name)} {array['shape']}" for name, array in facts["shared"].items()]
    lines += [f"{_text(name)} = {json.dumps(value)}" for name, value in facts["settings"].items()]
    for server, reasons in facts["servers"].items():
        lines += [f"not for {server}: {_text(reason)}" for reason in reasons]
    lines = [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..." for line in lines]
    lines += (f"NaN or inf: {_text(line)}" for line in facts.get("non_finite", ()))
    if facts["refused"] is not None:
        lines += map(_text, f"load_peft refuses it: {facts['refused']}".splitlines())
    return lines


def _text(text: str) -> str:
    """Text of a file, without characters that steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)

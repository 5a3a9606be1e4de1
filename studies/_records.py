"""Records of runs: lines of JSON in a file that grows, and survives an interruption."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


def read(path: pathlib.Path) -> list[Record]:
    """The records of a file, without a line that a killed run left unfinished."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


@contextlib.contextmanager
def append(path: pathlib.Path) -> Iterator[Callable[[Record], None]]:
    """A function that writes a record to the end of a file, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    with path.open("a") as file:
        if text and not text.endswith("\n"):
            file.write("\n")

        def write(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield write

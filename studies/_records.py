"""Records of runs: lines of JSON in a file that grows, and survives an interruption.

The repository stores them compressed. A study adds its new records to a file beside, and

    python -m studies._records

packs the new records of all studies.
"""

import contextlib
import json
import lzma
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]
RESULTS = pathlib.Path(__file__).parent / "results"


def read(path: pathlib.Path) -> list[Record]:
    """The packed and the new records, without a line that a killed run left unfinished."""
    packed = _packed(path)
    text = lzma.decompress(packed.read_bytes()).decode() if packed.exists() else ""
    lines = (text + (path.read_text() if path.exists() else "")).splitlines()
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


def pack(path: pathlib.Path) -> pathlib.Path:
    """Compress the records of a file with those that were packed before, and remove the file."""
    text = "".join(json.dumps(record) + "\n" for record in read(path))
    packed, unfinished = _packed(path), path.with_suffix(".unfinished")
    unfinished.write_bytes(lzma.compress(text.encode(), preset=9))
    unfinished.rename(packed)
    path.unlink()
    return packed


def _packed(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.xz")


if __name__ == "__main__":
    for new in sorted(RESULTS.glob("*.jsonl")):
        print(f"wrote {pack(new)}")

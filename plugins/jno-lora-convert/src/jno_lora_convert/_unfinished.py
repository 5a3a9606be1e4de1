"""Results that appear when they are complete, and resume after a kill."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from jno.lora import CheckpointError, PeftFormatError

# The file that tells of which call a folder has the results.
_RECORD = "jno-lora-convert.txt"


@contextlib.contextmanager
def unfinished(out: Path, sources: Iterable[Path], arguments: object) -> Iterator[Path]:
    """The place of a result, which becomes `out` at the end of the block.

    After a kill, the place has what the block had written, unless a file of the sources or an
    argument has changed since. After an error of a format or a proof, nothing is kept.
    """
    folder = out.with_name(f".{out.name}.partial")
    record, text = folder / _RECORD, repr((_facts(sources), arguments))
    if not (record.exists() and record.read_text() == text):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(text)
    try:
        yield folder / out.name
    except (PeftFormatError, CheckpointError, ImportError):
        shutil.rmtree(folder)
        raise
    os.replace(folder / out.name, out)
    shutil.rmtree(folder)


def _facts(sources: Iterable[Path]) -> list[tuple[str, int, int]]:
    """The path, the time and the size of each file."""
    roots = [source.resolve() for source in sources]
    files = [x for root in roots for x in (root, *sorted(root.rglob("*"))) if x.is_file()]
    return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]

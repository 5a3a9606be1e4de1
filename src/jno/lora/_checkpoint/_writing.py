"""Writing a file so that there is the old one or the new one, whole, whatever happens."""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from .._errors import CheckpointError
from ._container import FilePath


def write_atomically(path: FilePath, content: bytes) -> None:
    """Put `content` into the file at `path`, which need not exist.

    It is written to a new file in the same directory, flushed to the disk, and takes the place of
    the old one in one step. Permissions of an existing file are kept; a link stays one.

    **Raises:** `CheckpointError` if that fails. The old file is whole then, and nothing is left of
    the new one.
    """
    with written_beside(path, content) as put_in_place:
        put_in_place()


@contextlib.contextmanager
def written_beside(path: FilePath, content: bytes) -> Iterator[Callable[[], None]]:
    """`write_atomically` in two steps: the new file is on the disk, and a call puts it in place.

    **Raises:** `CheckpointError` in either step.
    """
    with _errors_of(path):
        target = Path(os.path.realpath(path))
        permissions = _permissions(target)
        temporary = _temporary(target)

    def put_in_place() -> None:
        with _errors_of(path):
            os.replace(temporary, target)
        _flush_directory(target.parent)

    with _removed_on_failure(temporary):
        with _errors_of(path):
            _write(temporary, content, permissions)
        yield put_in_place


@contextlib.contextmanager
def put_aside(path: FilePath) -> Iterator[None]:
    """A block in which there is no file at `path`. At its end the old one is deleted.

    If the block raises a `CheckpointError`, it is back in its place instead. Not so for others: an
    interrupt may come after the block has done its work.
    """
    with _errors_of(path):
        target = Path(os.path.realpath(path))
        aside = _temporary(target)
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, aside)
    try:
        yield
    except CheckpointError:
        with contextlib.suppress(FileNotFoundError):
            os.replace(aside, target)
        raise
    aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_of(path: FilePath) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        shown = os.fspath(path)
        raise CheckpointError(f"{shown!r} cannot be written: {err.strerror or err}.") from err
    except ValueError as err:  # a null byte
        raise CheckpointError(f"{os.fspath(path)!r} is no path: {err}.") from err


def _temporary(target: Path) -> Path:
    """A new name in the directory of `target`."""
    # The start of the name: file systems count bytes, of which a character may have four.
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")


def _permissions(target: Path) -> int | None:
    """Those of the existing file.

    **Raises:** `CheckpointError` if there cannot be a file, or may not be written.
    """
    if not target.parent.is_dir():
        raise CheckpointError(
            f"{os.fspath(target)!r} cannot be written: there is no directory "
            f"{os.fspath(target.parent)!r}. Make it first."
        )
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise CheckpointError(f"{os.fspath(target)!r} is {kind}, not a file. Give another path.")
    if not os.access(target, os.W_OK):
        raise CheckpointError(f"{os.fspath(target)!r} may not be written: it is read-only.")
    return stat.S_IMODE(mode)


def _write(path: Path, content: bytes, permissions: int | None) -> None:
    # By `os.open`, so that a new file has the permissions that the user's umask says.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if permissions is not None:
        os.chmod(path, permissions)


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _flush_directory(directory: Path) -> None:
    """Make the new name last through a power cut. The file is there already: this may fail."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

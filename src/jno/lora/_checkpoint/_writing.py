"""Writing a file: at any time, the whole old file or the whole new file is there."""

import contextlib
import dataclasses
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .._errors import CheckpointError
from ._container import FilePath, serialised


def write_file(
    path: FilePath, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays and metadata into one safetensors file, which `read_file` reads.

    The file has a checksum of each array and of the metadata. At any time, the whole old file or
    the whole new file is there.

    **Raises:** `CheckpointError` if the file cannot be written.
    """
    write_atomically(path, serialised(tensors, metadata))


def write_atomically(path: FilePath, content: bytes) -> None:
    """Put `content` into a file in one step. An old file keeps its permissions, a link stays.

    **Raises:** `CheckpointError` if that fails. Then the old file stays as it was.
    """
    with _written_beside(path, content) as new:
        new.put_in_place()


def write_together(files: Mapping[FilePath, bytes]) -> None:
    """Write a file of content and, if there is a second file, its description.

    Both are on the disk before an old file changes. The old description goes before the content
    changes, so that nobody reads new content by an old description. After an interrupt, both files
    are old or, once the content has been replaced, both are new.

    **Raises:** `CheckpointError` if that fails. Then the old files stay as they were, unless the
    new description alone could not take its place: then there is no description.
    """
    if len(files) == 1:
        for path, content in files.items():
            write_atomically(path, content)
        return
    (content_path, content), (description_path, description) = files.items()
    with (
        _written_beside(content_path, content) as new,
        _written_beside(description_path, description) as new_description,
    ):
        target = new_description.target
        aside = _temporary(target)
        try:
            with _errors_of(description_path), contextlib.suppress(FileNotFoundError):
                os.replace(target, aside)
            new.put_in_place()
            new_description.put_in_place()
        except BaseException as err:
            if not new.is_in_place:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(aside, target)
            elif not (new_description.is_in_place or isinstance(err, CheckpointError)):
                new_description.put_in_place()
            raise
        finally:
            if new.is_in_place:
                aside.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _NewFile:
    """A file on the disk, beside the file that it will replace."""

    path: FilePath  # as it was given
    target: Path
    temporary: Path

    @property
    def is_in_place(self) -> bool:
        return not self.temporary.exists()

    def put_in_place(self) -> None:
        with _errors_of(self.path):
            try:
                os.replace(self.temporary, self.target)
            except FileNotFoundError:  # a save of this path that ended meanwhile removed it
                if not self.target.exists():
                    raise
        # A save that was killed left its temporary file.
        for name in os.listdir(self.target.parent):
            if name.startswith(_start(self.target)) and name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    self.target.with_name(name).unlink()
        # So that the new name survives a power cut. If this fails, the file is there nevertheless.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _written_beside(path: FilePath, content: bytes) -> Iterator[_NewFile]:
    with _errors_of(path):
        target = Path(os.path.realpath(path))
        permissions = _permissions(target)
    new = _NewFile(path, target, _temporary(target))
    try:
        with _errors_of(path):
            # `os.open` gives a new file the permissions of the user's umask.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with open(os.open(new.temporary, flags, 0o666), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if permissions is not None:
                with contextlib.suppress(FileNotFoundError):  # as in `put_in_place`
                    os.chmod(new.temporary, permissions)
        yield new
    except BaseException:
        with contextlib.suppress(OSError):
            new.temporary.unlink()
        raise


@contextlib.contextmanager
def _errors_of(path: FilePath) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be written: {err.strerror}.") from err


def _temporary(target: Path) -> Path:
    return target.with_name(f"{_start(target)}{secrets.token_hex(8)}.tmp")


def _start(target: Path) -> str:
    """The start of the names of the temporary files for `target`, and for no other file."""
    # File systems limit the bytes of a name, and a character may take four. So it is cut.
    return f".{target.name[:40]}.{zlib.crc32(os.fsencode(target.name)):08x}."


def _permissions(target: Path) -> int | None:
    """The permissions of the existing file, which must be writable; `None` without a file."""
    shown, parent = os.fspath(target), os.fspath(target.parent)
    if not os.path.isdir(parent):
        raise CheckpointError(
            f"{shown!r} cannot be written: there is no directory {parent!r}. Make it first."
        )
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{shown!r} is a directory, a pipe or a device. Give a file.")
    if not os.access(target, os.W_OK):
        raise CheckpointError(f"{shown!r} may not be written: it is read-only.")
    return stat.S_IMODE(status.st_mode)

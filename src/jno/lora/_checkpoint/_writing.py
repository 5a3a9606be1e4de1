"""Writing a file: whatever happens, the old one or the new one is there, whole."""

import contextlib
import dataclasses
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from .._errors import CheckpointError
from ._container import FilePath


def write_atomically(path: FilePath, content: bytes) -> None:
    """Put `content` into the file at `path`, which need not exist.

    It is written to a new file in the same directory, flushed to the disk, and takes the place of
    the old one in one step. Permissions of an existing file are kept; a link stays one.

    **Raises:** `CheckpointError` if that fails. The old file is whole then, and the new one is
    removed.
    """
    with written_beside(path, content) as new:
        new.put_in_place()


@dataclasses.dataclass(frozen=True)
class NewFile:
    """A file on the disk, beside the one that it will replace."""

    path: FilePath  # as it was given
    target: Path
    temporary: Path

    @property
    def is_in_place(self) -> bool:
        """Whether it has replaced the old file."""
        return not self.temporary.exists()

    def put_in_place(self) -> None:
        """Replace the old file, in one step.

        **Raises:** `CheckpointError` if that fails.
        """
        with _errors_of(self.path):
            os.replace(self.temporary, self.target)
        _flush_directory(self.target.parent)


@contextlib.contextmanager
def written_beside(path: FilePath, content: bytes) -> Iterator[NewFile]:
    """`write_atomically` in two steps: the new file is on the disk, and `put_in_place` is a call.

    **Raises:** `CheckpointError` if it cannot be written.
    """
    with _errors_of(path):
        target = Path(os.path.realpath(path))
        permissions = _permissions(target)
        new = NewFile(path, target, _temporary(target))
    try:
        with _errors_of(path):
            _write(new.temporary, content, permissions)
        yield new
    except BaseException:
        with contextlib.suppress(OSError):
            new.temporary.unlink()
        raise


def put_together(content: NewFile, description: NewFile) -> None:
    """Put two files in place, where `description` describes `content`.

    No system replaces two files in one step. The description is missing while the content changes,
    so that no reader takes the old one for that of the new content. Whatever is raised meanwhile,
    both files are the old ones or, once the content has been replaced, the new ones.

    **Raises:** `CheckpointError` if a file cannot be replaced. If the description fails after the
    content, the description is missing.
    """
    aside = _temporary(description.target)
    try:
        with _errors_of(description.path), contextlib.suppress(FileNotFoundError):
            os.replace(description.target, aside)
        content.put_in_place()
    finally:
        if content.is_in_place:
            aside.unlink(missing_ok=True)
            try:
                description.put_in_place()
            except KeyboardInterrupt:
                if not description.is_in_place:
                    description.put_in_place()
                raise
        else:
            with contextlib.suppress(FileNotFoundError):
                os.replace(aside, description.target)


@contextlib.contextmanager
def _errors_of(path: FilePath) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        shown = os.fspath(path)
        raise CheckpointError(f"{shown!r} cannot be written: {err.strerror or err}.") from err
    except ValueError as err:  # a null byte
        raise CheckpointError(f"{os.fspath(path)!r} is not a path: {err}.") from err


def _temporary(target: Path) -> Path:
    """A new name in the directory of `target`."""
    # Only the start of the name: file systems limit its bytes, and a character may take four.
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")


def _permissions(target: Path) -> int | None:
    """The permissions of the existing file, or `None`.

    **Raises:** `CheckpointError` if there cannot be a file, or it may not be written.
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
    # `os.open` gives a new file the permissions of the user's umask.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if permissions is not None:
        os.chmod(path, permissions)


def _flush_directory(directory: Path) -> None:
    """Make the new name survive a power cut. The file is there already, so this may fail."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

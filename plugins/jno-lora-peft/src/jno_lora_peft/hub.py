"""Adapters in repositories of the Hugging Face Hub, through the library `huggingface_hub`.

The library's cache, token and offline mode apply. Only two files are downloaded, never a program or
a pickle, and both come from the same commit.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import imported_for, read_json

from .errors import format_errors
from .files import CONFIG, PICKLE, TENSORS, Directory
from .types.type import Settings

# An owner and a name. A string that begins with a dot, a slash or a drive letter is a path.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def locate(
    directory: Directory,
    revision: str | None = None,
    check: Callable[[Settings], object] | None = None,
) -> tuple[Path, str | None]:
    """The directory of an adapter, and its commit if it is from the Hub.

    The files are downloaded if `directory` is the name of a repository.

    A directory with this name takes precedence over the Hub. A name may end in a slash. `check`
    gets the configuration before the tensors are downloaded, and may raise to prevent this.

    **Raises:** `SelectionError` for a revision of a directory, `PeftFormatError` if the repository
    or its files are not available, `MissingLibraryError` without `huggingface_hub`.
    """
    name = directory.removesuffix("/") if isinstance(directory, str) else ""
    if _NAME.fullmatch(name) is None or os.path.lexists(directory):
        if revision is not None:
            raise SelectionError(
                f"revision={revision!r} is for a repository of the Hub, 'organisation/name', but "
                f"{os.fspath(directory)!r} is a path. A path that exists comes before the Hub."
            )
        return Path(directory), None
    what = f"{name!r} is not a directory here. To read it from the Hugging Face Hub, jno-lora-peft"
    with imported_for(what, "hub", "huggingface_hub"):
        import huggingface_hub  # noqa: F401
    folder = _download(name, CONFIG, revision)
    commit = folder.name  # the layout of the cache, which is documented
    if check is not None:
        with format_errors():
            check(read_json(folder / CONFIG))
    _download(name, TENSORS, commit)
    return folder, commit


def _download(name: str, file: str, revision: str | None) -> Path:
    """The cache folder with that file. **Raises:** `PeftFormatError`."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision)).parent
    # The errors depend on the library's version, because versions use different HTTP clients.
    except Exception as err:
        at, reason = "" if revision is None else f" at revision {revision!r}", str(err)
        if isinstance(err, errors.EntryNotFoundError):
            with contextlib.suppress(Exception):  # the first error suffices
                files = sorted(huggingface_hub.HfApi().list_repo_files(name, revision=revision))
                reason = (
                    f"it needs {CONFIG} and {TENSORS} in its main folder (a pickle, {PICKLE}, is "
                    f"not read), and has {len(files)} files: {', '.join(map(repr, files[:10]))}. "
                    "To read another folder, use `hf download`, and give the folder's path."
                )
        what = f"{name!r} is not a directory here, and no adapter can be read from the Hub{at}"
        raise PeftFormatError(f"{what}: {reason}") from err


def tell_commit(repository: Directory, commit: str, revision: str | None) -> None:
    """Log which commit was read; also print it unless `HF_HUB_DISABLE_PROGRESS_BARS` is set."""
    from huggingface_hub.utils import are_progress_bars_disabled

    line = f"{repository} is read at revision={commit!r}"
    logging.getLogger("jno_lora_peft").info(line)
    if revision != commit and not are_progress_bars_disabled():
        print(line, file=sys.stderr)

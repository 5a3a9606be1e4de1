"""Adapters in repositories of the Hugging Face Hub, through the library `huggingface_hub`.

The library has its cache, its token and its offline mode, which are used here as they are. Two
files are downloaded, never a program or a pickle, and both come from one commit.
"""

import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jno.lora import PeftFormatError, SelectionError
from jno.lora.extending import imported_for

from .directory import CONFIG, PICKLE, TENSORS, Directory, read_config, refused_pickle

_log = logging.getLogger("jno.lora.peft")

# An owner and a name. What begins with a dot, a slash or a letter of a drive is a path.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FEW = 10  # files of a repository that a message names

_LOGIN = "log in (`hf auth login`) or set HF_TOKEN"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an adapter is: a directory, and for the Hub the repository and its commit."""

    folder: Path
    repository: str | None = None
    commit: str | None = None


def locate(
    directory: Directory,
    revision: str | None = None,
    check: Callable[[dict[str, Any]], object] | None = None,
) -> Source:
    """The directory of an adapter, downloaded if `directory` is the name of a repository.

    A directory of this name comes before the Hub. A name may end in a slash. `check` gets the
    configuration before the tensors are downloaded, which it may refuse by raising.

    **Raises:** `SelectionError` for a revision of a directory, `PeftFormatError` if the repository
    or its files cannot be had, `MissingLibraryError` without `huggingface_hub`.
    """
    name = directory.removesuffix("/") if isinstance(directory, str) else ""
    is_name = _NAME.fullmatch(name) is not None
    if not is_name or os.path.lexists(directory):
        if revision is not None:
            why = "exists here, and comes before the Hub" if is_name else "is a path"
            raise SelectionError(
                f"revision={revision!r} is a branch, a tag or a commit of a repository of the Hub, "
                f"such as 'organisation/name', but {os.fspath(directory)!r} {why}. Leave "
                "`revision` out, or give the name of a repository."
            )
        return Source(Path(directory))
    return _downloaded(name, revision, check)


def _downloaded(
    name: str, revision: str | None, check: Callable[[dict[str, Any]], object] | None
) -> Source:
    what = f"{name!r} is not a directory here. To read it from the Hugging Face Hub, jno-lora-peft"
    with imported_for(what, "hub", "huggingface_hub"):
        import huggingface_hub

    def folder_of(file: str, at: str | None) -> Path:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file, revision=at)).parent
        # Its errors depend on its version, which chooses the client of HTTP.
        except Exception as err:
            _refuse(name, revision, err)

    folder = folder_of(CONFIG, revision)
    commit = folder.name  # the layout of the cache, which is documented
    if not _COMMIT.fullmatch(commit):
        raise PeftFormatError(
            f"The server gave {commit!r} as the commit of {name!r}. A commit has 40 hexadecimal "
            "digits. Check HF_ENDPOINT: it must be a server that speaks the Hub's protocol."
        )
    if check is not None:
        check(read_config(folder))
    folder_of(TENSORS, commit)
    return Source(folder, name, commit)


def tell_commit(source: Source, revision: str | None) -> None:
    """Say which commit was read. `HF_HUB_DISABLE_PROGRESS_BARS` silences the line on the screen."""
    if source.repository is None:
        return
    from huggingface_hub.utils import are_progress_bars_disabled

    line = f"{source.repository} is read at revision={source.commit!r}"
    _log.info(line)
    if revision != source.commit and not are_progress_bars_disabled():
        print(line, file=sys.stderr)


def _refuse(name: str, revision: str | None, err: Exception) -> NoReturn:
    from huggingface_hub import errors

    at = "" if revision is None else f" at revision {revision!r}"
    if isinstance(err, errors.GatedRepoError):
        reason = (
            "is gated: its owner decides who may read it. Ask for access on its page, then "
            f"{_LOGIN}"
        )
    elif isinstance(err, errors.RepositoryNotFoundError):
        reason = (
            "is neither a directory here nor a repository of the Hub that you may read. Check the "
            f"name. If the repository is private, {_LOGIN}"
        )
    elif isinstance(err, errors.RevisionNotFoundError):
        reason = f"has no revision {revision!r}. Give a branch, a tag or a commit of it"
    elif isinstance(err, errors.LocalEntryNotFoundError):
        reason = _unreachable(err, at)
    elif isinstance(err, errors.EntryNotFoundError):
        reason = _incomplete(name, revision, at)
    else:
        reason = f"is not here, and cannot be read from the Hub{at}: {_text(err)}"
    raise PeftFormatError(f"{name!r} {reason.removesuffix('.')}.") from err


def _unreachable(err: Exception, at: str) -> str:
    from huggingface_hub import constants

    missing = (
        f"is not a directory here, nor is its adapter{at} in the cache of huggingface_hub "
        f"({constants.HF_HUB_CACHE})"
    )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{missing}, and HF_HUB_OFFLINE forbids to ask the Hub. Load the adapter once without "
            "HF_HUB_OFFLINE, or give its directory"
        )
    return f"{missing}, and the Hub cannot be reached: {_text(err.__cause__ or err)}"


def _text(err: BaseException) -> str:
    """The message of an error in one line. A server may send anything, even control characters."""
    text = " ".join(str(err).split()) or type(err).__name__
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _incomplete(name: str, revision: str | None, at: str) -> str:
    """Which of the two files a repository lacks, and which files it has."""
    import huggingface_hub

    try:
        files = sorted(huggingface_hub.HfApi().list_repo_files(name, revision=revision))
    except Exception as err:  # as above
        return f"lacks {CONFIG} or {TENSORS}{at}, and its files cannot be listed: {_text(err)}"
    if CONFIG in files and PICKLE in files:
        return refused_pickle()
    lacks = " and ".join(file for file in (CONFIG, TENSORS) if file not in files)
    shown = ", ".join(map(repr, files[:_FEW])) or "no files"
    more = f" and {len(files) - _FEW} more" if len(files) > _FEW else ""
    reason = f"holds no adapter of PEFT{at}: it lacks {lacks}, and has {shown}{more}"
    folders = [file.removesuffix(f"/{CONFIG}") for file in files if file.endswith(f"/{CONFIG}")]
    if folders:
        reason += (
            f". An adapter is in its folder {folders[0]!r}: download the repository "
            f"(`hf download {name}`), and give the path of the folder"
        )
    return reason

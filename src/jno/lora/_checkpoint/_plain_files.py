"""Files of other formats, read and written with the same care as ours."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._errors import CheckpointError
from ._container import FilePath, opened, regular_file
from ._json import MalformedError, parse_json
from ._writing import put_together, written_beside

_MOST_JSON_BYTES = 32 * 2**20


def read_tensors(path: FilePath) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file.

    **Raises:** `CheckpointError`, which names the file, for everything that is wrong with it.
    """
    with opened(path) as container:
        return {name: container.read(name) for name in container.tensors}


def read_json(path: FilePath) -> dict[str, Any]:
    """The JSON object in a file. Duplicate keys and numbers such as NaN are refused.

    **Raises:** `CheckpointError`, which names the file, for everything that is wrong with it.
    """
    try:
        with regular_file(path) as file:
            content = file.read(_MOST_JSON_BYTES + 1)
        if len(content) > _MOST_JSON_BYTES:
            raise MalformedError(f"it has more than {_MOST_JSON_BYTES:,} bytes")
        return parse_json(content.decode(), "its content")
    except OSError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be read: {err.strerror}.") from err
    except ValueError as err:  # MalformedError, and bytes that are not UTF-8
        raise CheckpointError(f"{os.fspath(path)!r} cannot be used: {err}.") from err


def write_together(files: Mapping[FilePath, bytes]) -> None:
    """Write two files: the content, and then its description.

    Both are on the disk before an old one is touched. The old description goes before the content
    changes, so that nobody reads new content by an old description.

    **Raises:** `CheckpointError` if that fails. The old files are whole then, unless the new
    description alone could not take its place: then there is no description.
    """
    (content_path, content), (description_path, description) = files.items()
    with (
        written_beside(content_path, content) as new_content,
        written_beside(description_path, description) as new_description,
    ):
        put_together(new_content, new_description)

"""The two files of a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._checkpoint import (
    MalformedError,
    opened,
    parse_json,
    put_together,
    regular_file,
    written_beside,
)
from .._compute import count_non_finite
from .._errors import CheckpointError, PeftFormatError

Directory = str | os.PathLike[str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_MOST_CONFIG_BYTES = 32 * 2**20


def read(directory: Directory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the tensors in `directory`.

    **Raises:** `PeftFormatError` if a file is missing or damaged, or both are being replaced.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise PeftFormatError(
            f"{os.fspath(directory)!r} is not a directory. Give the one that PEFT's "
            f"`save_pretrained` wrote, with {CONFIG} and {TENSORS} in it."
        )
    config, tensors = _read_config(folder), _read_tensors(folder)
    if _read_config(folder) != config:
        raise PeftFormatError(
            f"{os.fspath(directory)!r} was written while it was read. Load it again."
        )
    return config, tensors


def write(directory: Directory, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write both files into `directory`, which is made if need be.

    Both are on the disk before an old one is touched, and there is no configuration while the
    tensors change (`put_together`): an adapter without one is refused. A process that is killed
    between those steps leaves it so.

    **Raises:** `PeftFormatError` if that fails. The old files are whole then, unless the new
    configuration alone could not take its place, when there is none.
    """
    # Here, because only those who save need them.
    import safetensors
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        # As PEFT says it of its own files; some readers ask for it.
        content = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    except safetensors.SafetensorError as err:
        raise PeftFormatError(
            f"The safetensors library {safetensors.__version__} cannot write these arrays: {err}. "
            "A newer one may."
        ) from err
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with (
            written_beside(Path(directory) / TENSORS, content) as new_tensors,
            written_beside(Path(directory) / CONFIG, text.encode()) as new_config,
        ):
            put_together(new_tensors, new_config)
    except OSError as err:
        raise PeftFormatError(
            f"{os.fspath(directory)!r} cannot be written: {err.strerror}"
        ) from err
    except CheckpointError as err:
        raise PeftFormatError(str(err)) from err


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each tensor that holds NaN or infinity."""
    counts = ((name, count_non_finite(x), x.size) for name, x in tensors.items())
    return [f"{name}: {count:,} of {size:,} numbers" for name, count, size in counts if count]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        with regular_file(path) as file:
            content = file.read(_MOST_CONFIG_BYTES + 1)
        if len(content) > _MOST_CONFIG_BYTES:
            raise MalformedError(f"it has more than {_MOST_CONFIG_BYTES:,} bytes")
        return parse_json(content.decode(), "its content")
    except OSError as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err.strerror}.") from err
    except ValueError as err:  # MalformedError, and what is no UTF-8
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be used: {err}.") from err


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / TENSORS
    if not path.exists() and (folder / _PICKLE).exists():
        raise PeftFormatError(
            f"{os.fspath(folder)!r} holds its tensors in {_PICKLE}, a pickle, which can run any "
            "program when it is read. Load it with PEFT where you trust it, and save it again: "
            f"`save_pretrained` writes {TENSORS}."
        )
    try:
        with opened(path) as container:
            return {name: container.read(name) for name in container.tensors}
    except CheckpointError as err:
        raise PeftFormatError(str(err)) from err

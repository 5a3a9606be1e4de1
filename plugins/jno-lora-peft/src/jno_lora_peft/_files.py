"""The two files of a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jno.lora import CheckpointError, PeftFormatError
from jno.lora.extending import read_json, read_tensors, write_together

Directory = str | os.PathLike[str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


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
    try:
        config = read_json(folder / CONFIG)
        tensors = _read_tensors(folder)
        changed = read_json(folder / CONFIG) != config
    except CheckpointError as err:
        raise PeftFormatError(str(err)) from err
    if changed:
        raise PeftFormatError(
            f"{os.fspath(directory)!r} was written while it was read. Load it again."
        )
    return config, tensors


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / TENSORS).exists() and (folder / _PICKLE).exists():
        raise PeftFormatError(
            f"{os.fspath(folder)!r} holds its tensors in {_PICKLE}, a pickle, which can run any "
            "program when it is read. Load it with PEFT where you trust it, and save it again: "
            f"`save_pretrained` writes {TENSORS}."
        )
    return read_tensors(folder / TENSORS)


def write(directory: Directory, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write both files into `directory`, which is made if need be.

    Both are on the disk before an old one is touched, and there is no configuration while the
    tensors change: an adapter without one is refused. A process that is killed between those steps
    leaves it so.

    **Raises:** `PeftFormatError` if that fails. The old files are whole then, unless the new
    configuration alone could not take its place: then there is no configuration.
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
    folder, text = Path(directory), json.dumps(config, indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / TENSORS: content, folder / CONFIG: text.encode()})
    except OSError as err:
        raise PeftFormatError(
            f"{os.fspath(directory)!r} cannot be written: {err.strerror}"
        ) from err
    except CheckpointError as err:
        raise PeftFormatError(str(err)) from err


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each tensor that holds NaN or infinity."""
    counts = {name: x.size - np.count_nonzero(np.isfinite(x)) for name, x in tensors.items()}
    return [
        f"{name}: {count:,} of {tensors[name].size:,} numbers"
        for name, count in counts.items()
        if count
    ]

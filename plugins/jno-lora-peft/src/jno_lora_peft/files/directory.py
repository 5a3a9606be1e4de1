"""The two files of a PEFT adapter in a directory."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jno.lora import PeftFormatError
from jno.lora.extending import read_file, read_json, write_together

from .._errors import format_errors

Directory = str | os.PathLike[str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


def read(directory: Directory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the tensors in `directory`."""
    folder, shown = Path(directory), repr(os.fspath(directory))
    if not folder.is_dir():
        raise PeftFormatError(
            f"{shown} is not a directory. Give the one that PEFT's `save_pretrained` wrote, with "
            f"{CONFIG} and {TENSORS} in it."
        )
    config = read_config(folder)
    if not (folder / TENSORS).exists() and (folder / PICKLE).exists():
        raise PeftFormatError(f"{shown} {refused_pickle()}")
    with format_errors():
        tensors, _ = read_file(folder / TENSORS)
    if read_config(folder) != config:
        raise PeftFormatError(f"{shown} was written while it was read. Load it again.")
    return config, tensors


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in `folder`."""
    with format_errors():
        return read_json(folder / CONFIG)


def refused_pickle() -> str:
    """The reason why the tensors of a pickle are not read, after the name of the place."""
    return (
        f"holds its tensors in {PICKLE}, a pickle, which can run any program when it is read. Load "
        "it with PEFT where you trust it, and save it again: `save_pretrained` writes "
        f"{TENSORS}."
    )


def write(directory: Directory, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write both files into `directory`, which is made if need be.

    If writing fails or is killed, the old files are whole, or the configuration is missing, so that
    nothing loads.
    """
    # Here, because only saving needs them.
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # As in PEFT's files; some readers ask for it.
    content = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    folder, text = Path(directory), json.dumps(config, indent=2, sort_keys=True) + "\n"
    with format_errors():
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / TENSORS: content, folder / CONFIG: text.encode()})


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each tensor that holds NaN or infinity."""
    counts = {name: np.count_nonzero(~np.isfinite(tensor)) for name, tensor in tensors.items()}
    return [f"{name}: {n:,} of {tensors[name].size:,} numbers" for name, n in counts.items() if n]

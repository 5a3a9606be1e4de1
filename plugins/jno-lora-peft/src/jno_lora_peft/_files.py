"""The two files of a PEFT adapter, and the names of the tensors in them."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jno.lora import CheckpointError, PeftFormatError
from jno.lora.extending import read_file, read_json, write_together

Directory = str | os.PathLike[str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"

# In front of every name: the two levels that PEFT puts around a model.
PREFIX = "base_model.model."
# Rows of an embedding that were trained alone: of a type of its own, or beside LoRA.
_ROWS = re.compile(r"(?:(.*)\.)?trainable_tokens_delta")
# Where PEFT keeps the module that it wrapped, or the copy of it that was trained.
_WRAPPED = re.compile(r"(^|\.)(base_layer|modules_to_save|ln_tuning_layers)(?=\.)")


def read(directory: Directory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the tensors in `directory`."""
    folder, shown = Path(directory), repr(os.fspath(directory))
    if not folder.is_dir():
        raise PeftFormatError(
            f"{shown} is not a directory. Give the one that PEFT's `save_pretrained` wrote, with "
            f"{CONFIG} and {TENSORS} in it."
        )
    try:
        config = read_json(folder / CONFIG)
        if not (folder / TENSORS).exists() and (folder / _PICKLE).exists():
            raise PeftFormatError(
                f"{shown} holds its tensors in {_PICKLE}, a pickle, which can run any program when "
                "it is read. Load it with PEFT where you trust it, and save it again: "
                f"`save_pretrained` writes {TENSORS}."
            )
        tensors, _ = read_file(folder / TENSORS)
        changed = read_json(folder / CONFIG) != config
    except CheckpointError as err:
        raise PeftFormatError(str(err)) from err
    if changed:
        raise PeftFormatError(f"{shown} was written while it was read. Load it again.")
    return config, tensors


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file by the names of modules, which are those of the model without PEFT.

    - `adapters`: those of the adapters: `{module: {part: tensor}}`, such as `lora_A.weight`.
    - `plain`: whole arrays of modules: `{module: {name: tensor}}`, such as `weight`.
    - `base`: the same for layers in adapters, whose arrays PEFT writes for embeddings and biases.
    - `rows`: rows of the weights of embeddings: `{module: {"weight": rows}}`.
    - `shared`: those that no module has alone.
    """

    adapters: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    plain: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    base: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    rows: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    shared: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def without(self, modules: Iterable[str]) -> "Tensors":
        """All but the tensors of these modules."""
        left_out = frozenset(modules)
        adapters, plain, base, rows = (
            {module: own for module, own in table.items() if module not in left_out}
            for table in self._tables
        )
        return Tensors(adapters, plain, base, rows, self.shared)

    @property
    def modules(self) -> list[str]:
        """The names of the modules."""
        return [*dict.fromkeys(module for table in self._tables for module in table)]

    @property
    def _tables(self) -> tuple[dict[str, dict[str, np.ndarray]], ...]:
        return self.adapters, self.plain, self.base, self.rows


def by_module(tensors: Mapping[str, np.ndarray], parts: str, shared: str) -> Tensors:
    """The tensors of a file, sorted by module.

    - `parts`, `shared`: regular expressions for those of a module's adapter, and of none alone.
    """
    part_of_adapter, of_none_alone = re.compile(rf"(?:(.*)\.)?({parts})"), re.compile(shared)
    found = Tensors()
    for key, tensor in tensors.items():
        if of_none_alone.fullmatch(key):
            found.shared[key] = tensor
            continue
        name = key.removeprefix(PREFIX)
        if match := part_of_adapter.fullmatch(name):
            part = match[2].removesuffix(".weight") if "magnitude" in match[2] else match[2]
            found.adapters.setdefault(match[1] or "", {})[part] = tensor
        elif match := _ROWS.fullmatch(name):
            module = (match[1] or "").removesuffix("token_adapter").removesuffix(".")
            found.rows[module] = {"weight": tensor}
        elif ".original_module." not in f".{name}":  # which PEFT keeps beside what was trained
            module, _, array = _WRAPPED.sub("", name).removeprefix(".").rpartition(".")
            table = found.base if name.endswith(f"base_layer.{array}") else found.plain
            table.setdefault(module, {})[array] = tensor
    return found


def write(directory: Directory, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write both files into `directory`, which is made if need be.

    Both are on the disk before an old one is touched, and there is no configuration while the
    tensors change. If that fails or is killed, the old files are whole, or the configuration is
    missing, and an adapter without one is refused.
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
    lines: list[str] = []
    for name, tensor in tensors.items():
        count = tensor.size - np.count_nonzero(np.isfinite(tensor))
        if count:
            lines.append(f"{name}: {count:,} of {tensor.size:,} numbers")
    return lines

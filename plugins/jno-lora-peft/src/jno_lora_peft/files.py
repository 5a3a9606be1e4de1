"""The two files of a PEFT adapter's directory, and the tensors sorted by module."""

import contextlib
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jno.lora import PeftFormatError
from jno.lora.extending import errors_of, read_file, read_json, written_beside

from .errors import format_errors
from .names import PREFIX

Directory = str | os.PathLike[str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


def read(directory: Directory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the tensors in `directory`."""
    folder, shown = Path(directory), repr(os.fspath(directory))
    if not folder.is_dir():
        raise PeftFormatError(
            f"{shown} is not a directory. Give the one that has {CONFIG} and {TENSORS}."
        )
    with format_errors():
        config = read_json(folder / CONFIG)
        if not (folder / TENSORS).exists() and (folder / PICKLE).exists():
            raise PeftFormatError(
                f"{shown} holds its tensors in {PICKLE}, a pickle, which can run any program when "
                f"it is read. If you trust it, load and save it with PEFT, which writes {TENSORS}."
            )
        tensors, _ = read_file(folder / TENSORS)
        if read_json(folder / CONFIG) != config:
            raise PeftFormatError(f"{shown} was written while it was read. Load it again.")
    return config, tensors


def write(
    directory: Directory,
    config: Mapping[str, object],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write both files into `directory`, which is created if it does not exist.

    If writing fails or is killed, either the old files are complete, or the configuration is
    missing, so that nothing loads.
    """
    # Imported here, because only saving needs them.
    import safetensors.numpy

    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    # As in PEFT's files; some readers require it.
    content = safetensors.numpy.save(arrays, metadata={"format": "pt", **metadata})
    folder, text = Path(directory), json.dumps(config, indent=2, sort_keys=True) + "\n"
    with format_errors():
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / TENSORS: content, folder / CONFIG: text.encode()})


def write_together(files: Mapping[Directory, bytes]) -> None:
    """Write a file of content and, if there is a second file, its description.

    An old file keeps its permissions, and a link stays a link. Both files are on the disk before an
    old file changes. The old description is removed before the content changes, so that new content
    is never read with an old description. After an interrupt, both files are old, or there is no
    description.

    **Arguments:** `files`: by path, the bytes of the content and then of the description.

    **Raises:** `CheckpointError`, which names the first file, if writing fails. Then the old files
    are unchanged, unless only the new description could not be moved into place; then there is no
    description.
    """
    with errors_of(next(iter(files)), "written"), contextlib.ExitStack() as stack:
        new = [stack.enter_context(written_beside(*item)) for item in files.items()]
        if len(new) == 1:
            os.replace(*new[0])
        else:
            _replace_both(*new)


def _replace_both(content: tuple[Path, Path], description: tuple[Path, Path]) -> None:
    """Move both new files into place. The old description is set aside while the content moves."""
    old = description[1].with_name(f".{CONFIG}.{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.replace(description[1], old)
    try:
        os.replace(*content)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.replace(old, description[1])
        raise
    old.unlink(missing_ok=True)
    os.replace(*description)


def not_finite(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each tensor that holds NaN or infinity."""
    counts = {name: np.count_nonzero(~np.isfinite(tensor)) for name, tensor in tensors.items()}
    return [f"{name}: {n:,} of {tensors[name].size:,} numbers" for name, n in counts.items() if n]


ByModule = dict[str, dict[str, np.ndarray]]

# Separately trained rows of an embedding, by their own type or beside LoRA.
_ROWS = re.compile(r"(?:(.*)\.)?trainable_tokens_delta")
# Where PEFT stores the wrapped module, or the trained copy.
_WRAPPED = re.compile(r"(^|\.)(base_layer|modules_to_save|ln_tuning_layers)(?=\.)")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file, by the modules' names in the model without PEFT.

    - `adapters`, `plain`: tensors of adapters, and whole arrays: `{module: {name: tensor}}`.
    - `base`: the arrays of adapted layers, which PEFT writes for embeddings and biases.
    - `rows`: rows of embeddings: `{module: {"weight": rows}}`; `shared`: tensors of all modules, by
        whole names.
    """

    adapters: ByModule = dataclasses.field(default_factory=dict)
    plain: ByModule = dataclasses.field(default_factory=dict)
    base: ByModule = dataclasses.field(default_factory=dict)
    rows: ByModule = dataclasses.field(default_factory=dict)
    shared: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def without(self, modules: Iterable[str]) -> "Tensors":
        left_out = frozenset(modules)
        adapters, plain, base, rows = (
            {module: tensors for module, tensors in table.items() if module not in left_out}
            for table in self._tables
        )
        return Tensors(adapters, plain, base, rows, self.shared)

    @property
    def modules(self) -> list[str]:
        return [*dict.fromkeys(module for table in self._tables for module in table)]

    @property
    def _tables(self) -> tuple[ByModule, ...]:
        return self.adapters, self.plain, self.base, self.rows


def by_module(tensors: Mapping[str, np.ndarray], of_adapter: str, shared: str) -> Tensors:
    """Sort the tensors of a file by module, using regular expressions for their names."""
    adapter_pattern, shared_pattern = re.compile(rf"(?:(.*)\.)?({of_adapter})"), re.compile(shared)
    result = Tensors()
    for key, tensor in tensors.items():
        if shared_pattern.fullmatch(key):
            result.shared[key] = tensor
            continue
        name = key.removeprefix(PREFIX)
        if match := adapter_pattern.fullmatch(name):
            array = match[2].removesuffix(".weight") if "magnitude" in match[2] else match[2]
            result.adapters.setdefault(match[1] or "", {})[array] = tensor
        elif match := _ROWS.fullmatch(name):
            module = (match[1] or "").removesuffix("token_adapter").removesuffix(".")
            result.rows[module] = {"weight": tensor}
        elif ".original_module." not in f".{name}":  # PEFT stores it beside the trained module
            module, _, array = _WRAPPED.sub("", name).removeprefix(".").rpartition(".")
            table = result.base if name.endswith(f"base_layer.{array}") else result.plain
            table.setdefault(module, {})[array] = tensor
    return result

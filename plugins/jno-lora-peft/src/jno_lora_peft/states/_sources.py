"""States in files: safetensors of diffusers and kohya, and checkpoints of Orbax."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import imported_for, read_file, read_json

from .._errors import format_errors
from ..files.config import Config
from ..files.directory import CONFIG

# Where diffusers keeps the configurations of PEFT, in the header of the file.
_CONFIGS = "lora_adapter_metadata"
# The file that a tree of Orbax has in its folder, and the folders in which libraries keep the tree.
_TREE, _STEP = "_METADATA", "_CHECKPOINT_METADATA"
_FOLDERS = ("", "model_params", "items", "default", "state")


class State(NamedTuple):
    """A tree of arrays, the alpha beside it, and configurations by the first part of names."""

    tree: PyTree
    alpha: float | None = None
    configs: Mapping[str, Config] = {}

    def config_for(self, key: str) -> tuple[Config | None, str]:
        """The configuration for a layer, and PEFT's name for the layer in this configuration."""
        model, _, name = key.partition("/")
        if model not in self.configs:
            model, name = "", key
        return self.configs.get(model), name.replace("/", ".")


def read_state(source: Any) -> State:
    """The state in a file or a folder, or a tree as it is. **Raises:** `PeftFormatError`."""
    if not isinstance(source, str | os.PathLike):
        return State(source)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG).exists():
        raise PeftFormatError(
            f"{os.fspath(folder)!r} holds an adapter of PEFT, whose scale is in {CONFIG}. Read it "
            "by load_peft(model, directory)"
        )
    with format_errors():
        if path.is_dir():
            return _read_orbax(path)
        tensors, metadata = read_file(path)
    return State(tensors, configs=_configs(metadata.get(_CONFIGS)))


def _configs(text: str | None) -> dict[str, Config]:
    """The configurations of `{"transformer.r": 8}` by the names of the models in a pipeline."""
    if text is None:
        return {}
    by_model: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(text).items():
        model, _, setting = name.rpartition(".")
        by_model.setdefault(model, {"peft_type": "LORA"})[setting] = value
    return {model: Config.parse(settings) for model, settings in by_model.items()}


def _read_orbax(path: Path) -> State:
    folders = [path / name for name in _FOLDERS if (path / name / _TREE).exists()]
    if not folders:
        raise PeftFormatError(
            f"{os.fspath(path)!r} is not a checkpoint of Orbax: {_TREE} is not in it, nor in "
            f"{', '.join(_FOLDERS[1:])}. Give the folder of one step, such as 'checkpoints/100'."
        )
    with imported_for("load_lora_state", "orbax", "orbax"):
        import orbax.checkpoint  # pyright: ignore[reportMissingImports]
    # As arrays of NumPy: the devices of whoever saved may not be here.
    as_numpy = orbax.checkpoint.RestoreArgs(restore_type=np.ndarray)
    folder = folders[0].absolute()
    try:
        with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
            shapes: Any = checkpointer.metadata(folder).item_metadata
            args = jax.tree.map(lambda _: as_numpy, shapes.tree)
            tree = checkpointer.restore(folder, restore_args=args)
    # A damaged folder has no metadata, so that `shapes` is `None`.
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise PeftFormatError(f"Orbax cannot read {os.fspath(path)!r}: {err}") from err
    return State(tree, _alpha(path))


def _alpha(path: Path) -> float | None:
    """The alpha that MaxText writes beside its states."""
    if not (path / _STEP).exists():
        return None
    facts: Any = read_json(path / _STEP).get("custom_metadata") or {}
    return facts.get("lora", {}).get("lora_alpha")

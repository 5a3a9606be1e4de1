"""The arrays of files of several formats, with what the files say of their LoRA."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import imported_for, read_json
from jno_lora_peft.config import Config
from jno_lora_peft.files import CONFIG, TENSORS
from jno_lora_peft.proof import FILE as PROOF
from jno_lora_peft.types.type import Settings

from ._arrays import Array, Later
from ._orbax import alpha_beside, open_orbax
from ._safetensors import map_safetensors

# The key of PEFT's configurations in the header of diffusers' files.
_CONFIGS = "lora_adapter_metadata"


class LayerConfig(NamedTuple):
    """PEFT's configuration of a layer, and the layer's name in it."""

    config: Config
    name: str


@dataclasses.dataclass(frozen=True)
class State:
    """A tree of arrays, its alpha, and configurations by the first component of names."""

    tree: PyTree[Array]
    alpha: float | None = None
    configs: Mapping[str, Config] = dataclasses.field(default_factory=dict)

    def config_for(self, key: str) -> LayerConfig | None:
        """The configuration of the layer with this name, if there is one."""
        model, _, name = key.partition("/")
        if model not in self.configs:
            model, name = "", key
        config = self.configs.get(model)
        return None if config is None else LayerConfig(config, name.replace("/", "."))

    def settings_for(self, key: str) -> Settings:
        """The settings in the configuration of a layer, if there is one."""
        layer = self.config_for(key)
        return {} if layer is None else layer.config.settings


def open_state(path: Path) -> State:
    """The arrays of a file or a folder, by their names. **Raises:** `PeftFormatError`."""
    if (path / CONFIG).exists():
        tensors, _ = map_safetensors(path / TENSORS)
        return State(tensors, configs={"": Config.parse(read_json(path / CONFIG))})
    if path.is_dir():
        files = weight_files(path)
        return State(_merge(files)) if files else State(open_orbax(path), alpha_beside(path))
    if path.suffix == ".h5":
        return State(_open_h5(path))
    tensors, metadata = map_safetensors(path)
    return State(tensors, configs=_configs(metadata.get(_CONFIGS, "{}")))


def weight_files(folder: Path) -> list[Path]:
    """The files of safetensors that Transformers would read in a folder, or else all of them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return sorted({folder / name for name in read_json(index)["weight_map"].values()})
    return sorted(file for file in folder.glob("*.safetensors") if file.name != PROOF)


def _merge(files: list[Path]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for file in files:
        new, _ = map_safetensors(file)
        if twice := sorted(arrays.keys() & new.keys()):
            raise PeftFormatError(f"Two files of the folder hold an array {twice[0]!r}.")
        arrays |= new
    return arrays


def _configs(text: str) -> dict[str, Config]:
    """The configurations in `{"transformer.r": 8}`, by the names of a pipeline's models."""
    by_model: dict[str, dict[str, object]] = {}
    for name, value in json.loads(text).items():
        model, _, setting = name.rpartition(".")
        by_model.setdefault(model, {"peft_type": "LORA"})[setting] = value
    return {model: Config.parse(settings) for model, settings in by_model.items()}


def _open_h5(path: Path) -> dict[str, Array]:
    with imported_for("Reading an .h5 file", "keras", "h5py"):
        import h5py  # pyright: ignore[reportMissingImports]
    arrays: dict[str, Array] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = jnp.bfloat16 if item.attrs.get("dtype") == "bfloat16" else item.dtype
            arrays[name] = Later(item.shape, np.dtype(dtype), lambda: item[()])

    try:
        h5py.File(path, "r").visititems(add)
    except OSError as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    return arrays

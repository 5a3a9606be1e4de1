"""Hashes of the weights that an adapter was made for, in the metadata of its tensors.

PEFT and servers ignore them. `load_peft` warns of another base.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import safetensors

from jno.lora import LoRAWrapper
from jno.lora.extending import bullets, is_traced, warn

from .files import TENSORS, Directory

KEY = "jno.lora.base"


def weight_hashes(layers: Mapping[str, eqx.Module]) -> dict[str, str]:
    """By name, the dtype and a hash of the weight of each layer that has values."""
    weights = {name: getattr(layer, "weight", None) for name, layer in layers.items()}
    return {
        name: f"{weight.dtype} {hashlib.sha256(np.asarray(weight).tobytes()).hexdigest()}"
        for name, weight in weights.items()
        if isinstance(weight, jax.Array | np.ndarray) and not is_traced(weight)
    }


def as_metadata(layers: Mapping[str, eqx.Module | None]) -> dict[str, str]:
    """The hashes for a file: of adapters around a weight that they did not change (as PiSSA does).

    - `layers`: the adapters by PEFT's names.
    """
    bases = {
        name: adapter.base
        for name, adapter in layers.items()
        if isinstance(adapter, LoRAWrapper) and type(adapter).unwrap is LoRAWrapper.unwrap
    }
    return {KEY: json.dumps(weight_hashes(bases))}


def warn_of_another_base(folder: Directory, layers: Mapping[str, eqx.Module]) -> None:
    """Warns if the weights of these layers, by PEFT's names, are not those of the file."""
    with safetensors.safe_open(Path(folder, TENSORS), framework="numpy") as file:
        saved = json.loads((file.metadata() or {}).get(KEY, "{}"))
    names = {saved_hash: name for name, saved_hash in saved.items()}
    lines: list[str] = []
    for name, found in weight_hashes({n: x for n, x in layers.items() if n in saved}).items():
        is_same_dtype = found.partition(" ")[0] == saved[name].partition(" ")[0]
        if found != saved[name] and is_same_dtype:
            there = f": here is the weight of {names[found]}" if found in names else ""
            lines.append(f"{name}{there}")
    if lines:
        warn(
            "The adapter was made for another base. The weights of these layers differ:\n"
            f"{bullets(lines, 8)}\nLoad it onto the model that it was trained on."
        )

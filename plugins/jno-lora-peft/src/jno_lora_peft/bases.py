"""Hashes of the weights that an adapter was made for, in the metadata of its tensors.

PEFT and servers ignore them. `load_peft` and conversions warn of another base.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors

from jno.lora import LoRAWrapper
from jno.lora.extending import bullets, is_traced, overrides, warn

from .files import TENSORS, Directory

KEY = "jno.lora.base"


def weight_hashes(weights: Mapping[str, object]) -> dict[str, str]:
    """By name, the dtype and a hash of each array that has values."""
    return {
        name: f"{weight.dtype} {hashlib.sha256(np.asarray(weight).tobytes()).hexdigest()}"
        for name, weight in weights.items()
        if isinstance(weight, jax.Array | np.ndarray) and not is_traced(weight)
    }


def as_metadata(weights: Mapping[str, object]) -> dict[str, str]:
    """The hashes of weights, by PEFT's names of their modules, for a file."""
    return {KEY: json.dumps(weight_hashes(weights))}


def unchanged_weight(layer: object) -> object:
    """The weight inside an adapter; `None` where the adapter changed it at its start (PiSSA)."""
    if not isinstance(layer, LoRAWrapper) or overrides(type(layer), LoRAWrapper, "unwrap"):
        return None
    return getattr(layer.base, "weight", None)


def warn_of_another_base(folder: Directory, weights: Mapping[str, object]) -> None:
    """Warns if these weights, by PEFT's names of their modules, are not those of the file."""
    with safetensors.safe_open(Path(folder, TENSORS), framework="numpy") as file:
        saved = json.loads((file.metadata() or {}).get(KEY, "{}"))
    names = {saved_hash: name for name, saved_hash in saved.items()}
    lines: list[str] = []
    for name, found in weight_hashes({n: x for n, x in weights.items() if n in saved}).items():
        is_same_dtype = found.partition(" ")[0] == saved[name].partition(" ")[0]
        if found != saved[name] and is_same_dtype:
            there = f": here is the weight of {names[found]}" if found in names else ""
            lines.append(f"{name}{there}")
    if lines:
        warn(
            "The adapter was made for another base. The weights of these layers differ:\n"
            f"{bullets(lines, 8)}\nUse the model that it was trained on, before any merge."
        )

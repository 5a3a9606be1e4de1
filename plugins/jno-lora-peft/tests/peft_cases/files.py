"""PEFT's two files, written by hand as its documentation has them."""

import json

import equinox as eqx
import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jno_lora_peft.files.config import known_settings
from jno_lora_peft.types import TYPES

PREFIX = "base_model.model."


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def lora_tensors(module, out, inp, rank=2, seed=0):
    """`lora_A` and `lora_B` of a linear layer, by their names in the file."""
    return {
        f"{PREFIX}{module}.lora_A.weight": normal(rank, inp, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": normal(out, rank, seed=seed + 1),
    }


def write_files(folder, tensors, **config):
    """An adapter of PEFT in `folder`: LoRA of rank 2 and alpha 3, or what `config` says."""
    kind = config.get("peft_type", "LORA")
    usual = {"r": 2, "lora_alpha": 3, "target_modules": ".*"}
    if isinstance(kind, str) and kind in TYPES:
        usual = {name: usual[name] for name in usual if name in known_settings(kind)}
    config = {"peft_type": kind, **usual, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def read_files(folder):
    """The configuration and the tensors of the adapter in `folder`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def stack_of(count):
    """Linear layers of the size of `linear`, as one."""
    keys = jax.random.split(jax.random.key(0), count)
    return eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(keys)

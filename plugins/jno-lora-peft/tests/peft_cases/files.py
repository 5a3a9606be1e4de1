"""PEFT's two files, written by hand as its documentation has them, and models to save."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jno.lora import apply_lora, lora_trainable_filter, merge_lora

PREFIX = "base_model.model."
# The adapters in `files.tar.xz`, which `write_files.py` writes.
CASES = (
    *("lora", "rslora", "dora", "bias", "modules", "vera", "vblora", "ia3-bias", "ia3-inputs"),
    *("loha", "lokr-small", "lokr-square", "pissa", "olora", "osf", "adalora", "hira", "delora"),
    *("gralora", "miss", "miss-bat", "c3a", "randlora", "oft", "oft-cayley", "boft", "hra"),
    *("road-4", "deft", "shira", "supertuning", "fourierft", "waveft", "tinylora", "unilora"),
    *("pvera", "glora", "frod", "beft", "tokens", "norms"),
)


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
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ".*", **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def read_files(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def stack_of(count):
    """Linear layers of the size of `linear`, as one."""
    keys = jax.random.split(jax.random.key(0), count)
    return eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(keys)


def moved(model):
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    moved = jax.tree.map(lambda a: a + jnp.asarray(0.3 * normal(*a.shape), a.dtype), trains)
    return eqx.combine(moved, rest)


def trained(model, wrapper=None, rank=2, alpha=3.0, **options):
    """A model with adapters that are moved away from their start."""
    key = jax.random.key(0)
    return moved(apply_lora(model, rank, alpha, key=key, wrapper=wrapper, **options))


def assert_same_weights(a, b):
    leaves = (jax.tree.leaves(merge_lora(model)) for model in (a, b))
    for one, other in zip(*leaves, strict=True):
        assert np.allclose(one, other, rtol=1e-5, atol=1e-5)

"""Sets of plain LoRA with random factors, for tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import AdapterSet, Net, extract_adapters


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def lora_sets(model, n, rank=2):
    """Sets with random factors and several scales, in the dtype of the model."""
    made = extract_adapters(Net(model).lora(rank=rank).module)
    sets = []
    for seed in range(n):
        leaves, structure = jax.tree.flatten(made)
        leaves = [
            jnp.asarray(random(*x.shape, seed=10 * seed + i), x.dtype) for i, x in enumerate(leaves)
        ]
        drawn = jax.tree.unflatten(structure, leaves)
        scaled = {p: dataclasses.replace(drawn[p], alpha=1.0 + seed % 3) for p in drawn}
        sets.append(AdapterSet(scaled))
    return sets

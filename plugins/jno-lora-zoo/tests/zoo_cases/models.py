"""Models with trained adapters, their updates in NumPy, written by hand, and JAX's compilations."""

import contextlib
import math

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from jno.lora import apply_lora, lora_trainable_filter


def layers(dtype=jnp.float32):
    """A linear layer, a convolution and a stack of two linear layers, by name."""
    keys = jax.random.split(jax.random.key(7), 4)
    model = {
        "convolution": eqx.nn.Conv1d(2, 3, 3, key=keys[0]),
        "linear": eqx.nn.Linear(5, 4, key=keys[1]),
        "stack": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 3, key=k))(keys[2:]),
    }
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)


def trained(model, wrapper, seed, rank=2, alpha=3.0, **rest):
    """`model` adapted, its adapters moved away from their start."""
    key, noise = jax.random.split(jax.random.key(seed))
    adapted = apply_lora(model, rank, alpha, key=key, wrapper=wrapper, **rest)
    trains, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    paths, treedef = jax.tree.flatten(trains)
    moved = [
        leaf + 0.3 * jax.random.normal(jax.random.fold_in(noise, i), leaf.shape, leaf.dtype)
        for i, leaf in enumerate(paths)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, moved), frozen)


def updates(adapters):
    """`s B A` of every adapter of a set, in float64."""
    return {path: update(adapters[path]) for path in adapters}


def update(adapter):
    """`s B A` of one adapter of LoRA, rsLoRA or LoRA-FA."""
    A, B = (np.asarray(adapter.state[name], np.float64) for name in ("lora_A", "lora_B"))
    root = adapter.wrapper.__name__.startswith("rsLoRA")
    return adapter.alpha / (math.sqrt(adapter.rank) if root else adapter.rank) * (B @ A)


def relative(found, expected):
    """How far two arrays are apart."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def train(net, by=0.1):
    """As if a step had moved everything that trains."""
    trainable, _ = net.partition()
    return net.update(jax.tree.map(lambda a: a + by, trainable))


def trains(net):
    """The paths of the arrays of a net that train."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(net.module, net.trainable))
    return {jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves}


@contextlib.contextmanager
def compilations():
    """The programs that JAX compiles inside."""
    seen = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)

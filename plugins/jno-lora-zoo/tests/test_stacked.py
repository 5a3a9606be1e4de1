"""Layers stacked by `filter_vmap`. The kit merges stacks, and runs them by `lax.scan`."""

import equinox as eqx
import jax
import numpy as np
from zoo_cases import assert_close, each, equal_leaves, perturb

from jno.lora import apply_lora, unwrap_lora

DEPTH = 3
MAKE = {
    "Linear": lambda key: eqx.nn.Linear(5, 5, key=key),
    "Conv": lambda key: eqx.nn.Conv1d(4, 4, 3, padding=1, groups=2, key=key),
}
SHAPES = {"Linear": (5,), "Conv": (4, 7)}


def stacked_layer(kind):
    return eqx.filter_vmap(MAKE[kind])(jax.random.split(jax.random.key(1), DEPTH))


def adapt(adapter):
    layer = stacked_layer(adapter.kind)
    return layer, apply_lora(layer, 2, 3.0, key=jax.random.key(2), wrapper=adapter.cls)


def nth(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


@each()
def test_a_stack_is_adapted_and_unwrapped_layer_by_layer(adapter):
    layer, stack = adapt(adapter)
    assert type(stack) is adapter.cls
    names = [n for n in ("lora_A", "kron_A", "seed") if n in vars(stack)]
    for name in names:  # each layer has its own
        values = np.asarray(getattr(stack, name)).reshape(DEPTH, -1)
        assert len({row.tobytes() for row in values}) == DEPTH
    fresh = adapter.cls(nth(layer, 0), 2, 3.0, key=jax.random.key(0))
    assert jax.tree.structure(nth(stack, 0)) == jax.tree.structure(fresh)
    for one, other in zip(jax.tree.leaves(nth(stack, 0)), jax.tree.leaves(fresh), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    unwrapped = unwrap_lora(perturb(stack))
    if adapter.method in ("PiSSA", "MiLoRA"):
        assert_close(unwrapped.weight, layer.weight, 1e-6)
    else:
        assert equal_leaves(unwrapped, layer)

"""Gradients through several layers are those of the law."""

import equinox as eqx
import jax
import jax.numpy as jnp
from zoo_cases import (
    assert_close,
    build,
    each,
    perturb,
)

from jno.lora import lora_trainable_filter


@each()
def test_layers_one_after_the_other_have_the_gradients_of_the_law(adapter):
    """The input of the second varies with what trains, which not every version of JAX survives."""
    keys = jax.random.split(jax.random.key(0), 3)
    if adapter.kind == "Linear":
        make, shape = lambda key: eqx.nn.Linear(4, 4, key=key), (4,)
    else:
        make, shape = lambda key: eqx.nn.Conv1d(4, 4, 3, padding=1, key=key), (4, 6)
    x = jax.random.normal(keys[2], shape)
    layers = [perturb(build(adapter, make(key), rank=2), seed=1) for key in keys[:2]]
    trainable, frozen = eqx.partition(layers, [lora_trainable_filter(one) for one in layers])

    def total(trainable, as_used):
        first, second = map(as_used, eqx.combine(trainable, frozen))
        return jnp.sum(jnp.sin(second(jnp.tanh(first(x)))))

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    found, expected = gradient(trainable, lambda one: one), gradient(trainable, lambda o: o.merge())
    for ours, law in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, law, 1e-5)

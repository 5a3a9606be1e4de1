"""Training moves the adapter alone, and gradients through several layers are those of the law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from zoo_cases import (
    assert_close,
    build,
    case,
    each,
    equal_leaves,
    perturb,
)

from jno.lora import lora_trainable_filter


def loss(trainable, frozen, inputs):
    wrapper = eqx.combine(trainable, frozen)
    return jnp.sum(jnp.sin(wrapper(*inputs)))


def split(wrapper):
    return eqx.partition(wrapper, lora_trainable_filter(wrapper))


@each()
def test_training_moves_the_adapter_and_nothing_else(adapter):
    base = case(adapter.kind, "plain")
    start = build(adapter, base)
    optimiser = optax.sgd(0.02, momentum=0.9)
    trainable, frozen = split(start)
    state = optimiser.init(trainable)
    losses = []
    for _ in range(3):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen, base.arguments())
        updates, state = optimiser.update(gradients, state)
        trainable = optax.apply_updates(trainable, updates)
        losses.append(float(value))
    trained = eqx.combine(trainable, frozen)
    assert losses[2] < losses[0]
    assert equal_leaves(split(trained)[1], split(start)[1])
    for name in adapter.cls.adapter_fields:
        assert np.any(np.asarray(getattr(trained, name)) != np.asarray(getattr(start, name)))


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

"""What XLA makes of a training step: no LAPACK, and the numbers of the uncompiled one."""

import functools
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import ADAPTERS, adapters, assert_close, build, case, perturb

from jno.lora import lora_trainable_filter

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name, scope="module")


@functools.cache
def compiled_step(adapter):
    """The adapter's value and gradient: as a function, its arguments, and compiled."""
    base = case(adapter.kind, "plain")
    wrapper = perturb(build(adapter, base))
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))

    def loss(trainable, x):
        return jnp.sum(jnp.sin(eqx.combine(trainable, frozen)(x)))

    step = jax.value_and_grad(loss, argnums=(0, 1))
    arguments = (trainable, *base.arguments())
    return step, arguments, jax.jit(step).lower(*arguments).compile()


@every_adapter
def test_a_training_step_calls_no_library(adapter):
    # LAPACK calls of several layers in one step can wait for each other's threads forever.
    *_, compiled = compiled_step(adapter)
    text = compiled.as_text()
    assert "ENTRY" in text
    assert "custom-call" not in text
    assert "custom_call" not in text


@every_adapter
def test_a_compiled_step_is_the_uncompiled_one(adapter):
    step, arguments, compiled = compiled_step(adapter)
    actual, expected = compiled(*arguments), step(*arguments)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, 1e-4)


def test_a_step_through_four_oft_layers_finishes():
    (adapter,) = (a for a in ADAPTERS if a.name == "OFTLinear")
    layer = eqx.nn.Linear(48, 48, key=jax.random.key(0))
    layers = [perturb(build(adapter, layer, rank=16), seed=k) for k in range(4)]
    result = []

    @jax.jit
    def step(layers, x):
        def loss(layers):
            h = x
            for one in layers:
                h = jnp.tanh(jax.vmap(one)(h))
            return jnp.sum(h)

        return jax.grad(loss)(layers)

    def run():
        for _ in range(3):
            result.append(jax.block_until_ready(step(layers, jnp.ones((8, 48)))))

    thread = threading.Thread(target=run, daemon=True)  # or a hang would be that of the suite
    thread.start()
    thread.join(timeout=120)
    assert len(result) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result[-1]))


def residual_bytes(adapter, base):
    """What the backward pass of a batch keeps, in bytes."""
    wrapper = perturb(build(adapter, base))
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))
    (x,) = base.arguments()
    batch = jnp.stack([x] * 32)
    _, backward = jax.vjp(lambda t, xs: jax.vmap(eqx.combine(t, frozen))(xs), trainable, batch)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(backward)), batch.nbytes


@adapters("LoRAFA")
def test_lora_fa_does_not_keep_the_layers_input(adapter, base):
    (lora,) = (a for a in ADAPTERS if a.name == "LoRA" + adapter.kind)
    kept, input_bytes = residual_bytes(adapter, base)
    assert kept + input_bytes <= residual_bytes(lora, base)[0]

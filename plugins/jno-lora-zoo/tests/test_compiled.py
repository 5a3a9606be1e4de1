"""XLA's program of a training step: its memory, and that it finishes.

The kit compares compiled and uncompiled steps, and finds LAPACK in them.
"""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from zoo_cases import ADAPTERS, adapters, build, each, perturb

from jno.lora import apply_lora, lora_trainable_filter


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
    """The bytes that the backward pass of a batch keeps."""
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


def temporary_bytes(adapter, layer, x):
    """The bytes that a compiled step of three layers needs beside its arguments and results."""
    layers = [perturb(build(adapter, layer, rank=2), seed=k) for k in range(3)]
    trainable, frozen = eqx.partition(layers, [lora_trainable_filter(one) for one in layers])

    def loss(trainable):
        h = x
        for one in eqx.combine(trainable, frozen):
            h = jax.nn.relu(jax.vmap(one)(h))
        return jnp.sum(h**2)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(trainable).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@each("LoRAFA")
def test_a_compiled_step_of_lora_fa_takes_less_memory(adapter):
    (lora,) = (a for a in ADAPTERS if a.name == "LoRA" + adapter.kind)
    key = jax.random.key(0)
    if adapter.kind == "Linear":
        layer, shape = eqx.nn.Linear(32, 32, key=key), (256, 32)
    else:
        layer, shape = eqx.nn.Conv1d(32, 32, 3, padding=1, key=key), (4, 32, 64)
    x = jnp.ones(shape)
    kept = temporary_bytes(lora, layer, x) - temporary_bytes(adapter, layer, x)
    # The inputs of the second and the third layer; that of the first is there anyway.
    assert kept >= 2 * x.nbytes


def test_the_gradient_of_a_tall_factor_is_laid_out_by_columns():
    # XLA on a CPU takes ten times as long for the same product by rows.
    adapted = apply_lora(eqx.nn.Linear(48, 64, key=jr.key(0)), 2, key=jr.key(1))
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))

    def loss(trainable, x):
        return jnp.sum(jax.vmap(eqx.combine(trainable, frozen))(x) ** 2)

    text = jax.jit(jax.grad(loss)).lower(trainable, jnp.ones((32, 48))).compile().as_text()
    assert "f32[64,2]{0,1} dot(" in text or "f32[2,64]{1,0} dot(" in text
    assert "f32[64,2]{1,0} dot(" not in text


def test_veras_random_matrices_are_drawn_inside_the_products_with_one_example():
    base = eqx.nn.Linear(512, 512, key=jr.key(0))
    model = apply_lora(base, 16, key=jr.key(1), wrapper="vera")
    step = jax.jit(jax.vmap(model)).lower(jnp.zeros((1, 512))).compile()
    assert step.memory_analysis().temp_size_in_bytes < 16 * 512 * 4

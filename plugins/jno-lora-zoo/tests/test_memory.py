"""The arrays that a step computes, keeps for the backward pass, and how XLA lays them out."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.experimental.jet import jet
from zoo_cases import LAW_WAYS, OPTIONS, Adapter, build, made, perturb

import jno_lora_zoo
from jno.lora import apply_lora, lora_trainable_filter

ROWS, SIZE = 32, 64


@pytest.fixture(scope="module")
def layer():
    return eqx.nn.Linear(SIZE, SIZE, dtype=jnp.bfloat16, key=jr.key(0))


@pytest.mark.parametrize("variant", ["dora", "vera", "ia3"])
def test_outputs_are_kept_in_the_layers_own_precision(layer, variant):
    adapted = apply_lora(layer, 2, key=jr.key(1), wrapper=variant)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    x = jr.normal(jr.key(2), (ROWS, SIZE), jnp.bfloat16)
    _, pullback = jax.vjp(lambda t: jax.vmap(eqx.combine(t, frozen))(x), trainable)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if jnp.size(leaf) == ROWS * SIZE]
    assert {leaf.dtype.name for leaf in kept} == {"bfloat16"}


def test_scaled_outputs_keep_the_derivatives_of_float32_and_taylor_mode_follows_them(layer):
    dora = apply_lora(layer, 2, key=jr.key(1), wrapper="dora")
    x = jr.normal(jr.key(2), (SIZE,), jnp.bfloat16)

    def total(magnitude):
        return jnp.sum(eqx.tree_at(lambda d: d.magnitude, dora, magnitude)(x).astype(jnp.float32))

    y = (dora(x) - layer.bias).astype(jnp.float32)
    gradient = jax.grad(total)(dora.magnitude)
    assert gradient.dtype == jnp.float32
    assert jnp.allclose(gradient, y / dora.magnitude, rtol=2e-2, atol=1e-3)
    _, (first, second) = jet(dora, (x,), ((x, jnp.zeros_like(x)),))
    assert jnp.allclose(first, dora(x) - layer.bias, atol=0.05)
    assert jnp.all(second == 0)


# DoRA needs the norms of rows, HiRA each entry, and DEFT projects the weight anew at every call.
READ_IN_FLOAT32 = {"DoRA", "HiRA", "DEFT"}
# These laws make the update as a matrix, and cast the gradient by it.
MAKE_THE_UPDATE = {"C3A", "SHiRA", "SuperTuning", "FourierFT", "WaveFT"}


@pytest.mark.parametrize("method", LAW_WAYS)
def test_no_step_makes_a_float32_copy_of_the_weight(method):
    base = eqx.nn.Linear(SIZE, SIZE - 4, dtype=jnp.bfloat16, key=jr.key(0))
    cls, options = getattr(jno_lora_zoo, method + "Linear"), OPTIONS.get(method, {})
    adapted = made(cls, base, 2, 3.0, key=jr.key(1), **options)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    x = jr.normal(jr.key(2), (ROWS, SIZE), jnp.bfloat16)

    def loss(trainable, weight, x):
        layer = eqx.combine(trainable, frozen)
        layer = eqx.tree_at(lambda m: m.base.weight, layer, weight)
        return jnp.sum(jax.vmap(layer)(x).astype(jnp.float32))

    program = jax.jit(jax.grad(loss)).lower(trainable, adapted.base.weight, x).as_text()
    copies = re.findall(r"convert.*<(60x64|64x60)xbf16>\) -> tensor<\1xf32>", program)
    assert bool(copies) == (method in READ_IN_FLOAT32 | MAKE_THE_UPDATE)


def test_a_compiled_step_of_lora_fa_takes_less_memory():
    layer, x = eqx.nn.Conv1d(32, 32, 3, padding=1, key=jr.key(0)), jnp.ones((4, 32, 64))

    def temporary_bytes(method):
        layers = [perturb(build(Adapter(method, "Conv"), layer, rank=2), seed=k) for k in range(3)]
        trainable, frozen = eqx.partition(layers, [lora_trainable_filter(one) for one in layers])

        def loss(trainable):
            h = x
            for one in eqx.combine(trainable, frozen):
                h = jax.nn.relu(jax.vmap(one)(h))
            return jnp.sum(h**2)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(trainable).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # The inputs of the second and the third layer; that of the first is there anyway.
    assert temporary_bytes("LoRA") - temporary_bytes("LoRAFA") >= 2 * x.nbytes


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

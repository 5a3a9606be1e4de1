"""The arrays that a step with a half-precision layer computes, and keeps for the backward pass."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.experimental.jet import jet
from zoo_cases import ALL_METHODS, OPTIONS, made

import jno_lora_zoo
from jno.lora import apply_lora, lora_trainable_filter

ROWS, SIZE = 32, 64


@pytest.fixture(scope="module")
def layer():
    linear = eqx.nn.Linear(SIZE, SIZE, key=jr.key(0))
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, linear)


@pytest.mark.parametrize("variant", ["dora", "vera", "ia3"])
def test_outputs_are_kept_in_the_layers_own_precision(layer, variant):
    adapted = apply_lora(layer, 2, key=jr.key(1), wrapper=variant)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    x = jr.normal(jr.key(2), (ROWS, SIZE), jnp.bfloat16)
    _, pullback = jax.vjp(lambda t: jax.vmap(eqx.combine(t, frozen))(x), trainable)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if jnp.size(leaf) == ROWS * SIZE]
    assert {leaf.dtype.name for leaf in kept} == {"bfloat16"}


def test_scaled_outputs_keep_the_derivatives_of_float32(layer):
    dora = apply_lora(layer, 2, key=jr.key(1), wrapper="dora")
    x = jr.normal(jr.key(2), (SIZE,), jnp.bfloat16)

    def total(magnitude):
        return jnp.sum(eqx.tree_at(lambda d: d.magnitude, dora, magnitude)(x).astype(jnp.float32))

    y = (dora(x) - layer.bias).astype(jnp.float32)
    gradient = jax.grad(total)(dora.magnitude)
    assert gradient.dtype == jnp.float32
    assert jnp.allclose(gradient, y / dora.magnitude, rtol=2e-2, atol=1e-3)


def test_taylor_mode_follows_them(layer):
    dora = apply_lora(layer, 2, key=jr.key(1), wrapper="dora")
    x = jr.normal(jr.key(2), (SIZE,), jnp.bfloat16)
    _, (first, second) = jet(dora, (x,), ((x, jnp.zeros_like(x)),))
    assert jnp.allclose(first, dora(x) - layer.bias, atol=0.05)
    assert jnp.all(second == 0)


# DoRA needs the norms of rows, HiRA each entry, and DEFT projects the weight anew at every call.
READ_IN_FLOAT32 = {"DoRA", "HiRA", "DEFT"}
# These laws make the update as a matrix, and cast the gradient by it.
MAKE_THE_UPDATE = {"C3A", "SHiRA", "SuperTuning", "FourierFT", "WaveFT"}


@pytest.mark.parametrize("method", ALL_METHODS)
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

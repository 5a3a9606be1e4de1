"""Habits of models in the wild: scans over stacks, typed keys, direct reads of weights."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import Net, apply_lora, lora_trainable_filter, merge_lora, unwrap_lora


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=first)
        self.up = eqx.nn.Linear(6, 6, key=second)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, xs, key):
        xs = xs + self.attention(xs, xs, xs)
        return xs + self.dropout(jax.vmap(self.up)(xs), key=key)


class Encoder(eqx.Module):
    """Two stages of three blocks, a stack of stacks, run by two scans; the head is tied."""

    tokens: eqx.nn.Embedding
    blocks: Block  # every array has the leading axes (2, 3)
    activation: Callable
    noise: jax.Array  # a typed key, as a leaf
    name: str = "encoder"

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.tokens = eqx.nn.Embedding(7, 6, key=first)
        self.blocks = eqx.filter_vmap(eqx.filter_vmap(Block))(jax.random.split(second, (2, 3)))
        self.activation = jax.nn.gelu
        self.noise = jax.random.key(3)

    def __call__(self, ids):
        xs = self.tokens.weight[ids]  # not `vmap(self.tokens)(ids)`
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def block(xs, arrays):
            run = eqx.filter_checkpoint(eqx.combine(arrays, static))
            return self.activation(run(xs, self.noise)), None

        def stage(xs, arrays):
            return jax.lax.scan(block, xs, arrays)

        xs, _ = jax.lax.scan(stage, xs, arrays)
        return xs @ self.tokens.weight.T


IDS = np.array([1, 4, 2, 2, 6])


@pytest.fixture(scope="module")
def encoder():
    return eqx.nn.inference_mode(Encoder(jax.random.key(0)))


def close(one, other, tolerance=2e-5):
    scale = max(float(jnp.max(jnp.abs(other))), 1e-3)
    np.testing.assert_allclose(one, other, atol=tolerance * scale, rtol=0)


# The kit has every adapter stacked; what a whole model adds is seen with a few.
ADAPTERS: list[Any] = ["auto", ["LoRAAttention", "vera", "OFTEmbedding"]]


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ADAPTERS, ids=str)
def test_a_scanned_stack_of_stacks_with_a_tied_head(wrapper, encoder):
    run = eqx.filter_jit(lambda model: model(IDS))
    adapted = apply_lora(encoder, 2, 4.0, key=jax.random.key(1), wrapper=wrapper)
    paths = {row.path for row in Net(adapted).summary()}
    assert "tokens" in paths and any(path.startswith("blocks/attention") for path in paths)
    if wrapper == "auto":  # the slices of a stack start from different values
        factors = np.asarray(adapted.blocks.up.lora_A)
        assert factors.shape == (2, 3, 2, 6)
        assert len({factor.tobytes() for factor in factors.reshape(6, -1)}) == 6
    close(run(adapted), run(encoder))
    trained = perturb(adapted, 0.2)
    plain = merge_lora(trained)
    assert jax.tree.structure(plain) == jax.tree.structure(encoder)
    close(run(plain), run(trained), 1e-4)
    assert not np.allclose(run(trained), run(encoder), rtol=1e-3)
    assert unwrap_lora(trained).noise is encoder.noise

    def loss(trainable, frozen, prepare):
        return jnp.sum(jnp.sin(prepare(eqx.combine(trainable, frozen))(IDS)))

    parts = eqx.partition(trained, lora_trainable_filter(trained))
    grads = [
        eqx.filter_jit(eqx.filter_grad(loss))(*parts, prepare)
        for prepare in (lambda model: model, merge_lora)
    ]
    # Merging inside the loss is the way for models that hide their weights: the same gradients.
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads[0]))
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale, rtol=0)

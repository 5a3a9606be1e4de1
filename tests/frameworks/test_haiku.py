"""Haiku: its layers, `layer_stack`, states and keys."""

import haiku as hk
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno_lora_arrays import infer

from ._checks import METHODS, check

IDS = jnp.array([[1, 4, 10], [0, 4, 7]])


def network(ids, is_training):
    """A transformer whose blocks are a stack, with a batch norm and dropout."""
    embed = hk.Embed(11, 8)
    x = embed(ids)

    def block(x):
        attention = hk.MultiHeadAttention(
            2, 4, model_size=8, w_init=hk.initializers.RandomNormal(0.3)
        )
        x = x + attention(x, x, x)
        return x + hk.Linear(8)(jax.nn.gelu(hk.Linear(16)(x)))

    x = hk.experimental.layer_stack(3)(block)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Conv1D(12, 3)(x) @ jnp.ones((12, 2)), x @ embed.embeddings.T


@pytest.mark.parametrize("method", METHODS)
def test_a_network_with_state_keys_and_a_stack(method):
    model = hk.transform_with_state(network)
    params, state = model.init(jr.key(0), IDS, True)

    def apply(params, state, key, ids):
        return model.apply(params, state, key, ids, True)

    merged = check(apply, params, state, jr.key(1), IDS, method=method)
    assert all(use.operation == "conv_general_dilated" for use in merged)
    assert (merged == []) == (method in ("lora", "pissa", "vera"))


def test_axes():
    model = hk.transform_with_state(network)
    params, state = model.init(jr.key(0), IDS, True)
    axes = infer(lambda p: model.apply(p, state, jr.key(1), IDS, True), params)
    letters = {path.split("/~/")[-1]: own for path, own in axes.letters.items()}
    assert set(axes.letters.values()) == {"sio", "iio", "eo"}, letters
    assert axes.coverage > 0.9

"""Flax NNX: `split`, `declare` the state, `merge` inside of the function."""

import jax.numpy as jnp
import jax.random as jr
import pytest
from flax import nnx

from jno_lora_arrays import infer

from ._checks import METHODS, check

X = jr.normal(jr.key(0), (2, 6, 8))


class Block(nnx.Module):
    """A block of a transformer, with a batch norm and dropout."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.first, self.second = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.second(self.dropout(nnx.gelu(self.first(x))))


class Language(nnx.Module):
    """Scanned blocks between an embedding and its transpose."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.layers = nnx.vmap(lambda rngs: nnx.Linear(8, 8, rngs=rngs))(rngs.split(3))

    def __call__(self, ids):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return nnx.remat(lambda layer, x: jnp.tanh(layer(x)))(layer, x)

        return self.embed.attend(run(self.embed(ids), self.layers))


@pytest.mark.parametrize("method", METHODS)
def test_blocks_with_state_and_keys(method):
    graph, params, rest = nnx.split(Block(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        y = model(x)
        return y, nnx.state(model, nnx.BatchStat)

    assert check(apply, params, rest, X, method=method) == []


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_scan_and_remat(method):
    graph, params = nnx.split(Language(nnx.Rngs(0)), nnx.Param)
    ids = jnp.array([[1, 4, 10], [0, 4, 7]])

    def apply(params, ids):
        return nnx.merge(graph, params)(ids)

    axes = infer(apply, params, ids)
    assert sorted(axes.letters.values()) == ["eo", "sio"]
    assert check(apply, params, ids, method=method) == []

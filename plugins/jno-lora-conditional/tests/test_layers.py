"""Layers of all kinds as functions of a parameter, and every basis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from foundax.architectures.fno import SpectralConv1d

from jno_lora_arrays import declare, through
from jno_lora_conditional import Function, Hats, Indexed, Network, Powers
from jno_lora_conditional.testing import check_conditional
from jno_lora_quantized import quantize

KEY = jax.random.key(0)
X = jnp.array([0.3, -0.5, 0.8, 1.1])


class Stack(eqx.Module):
    """Three layers whose arrays have an axis in front, called by `lax.scan`."""

    layers: eqx.nn.Linear

    def __init__(self):
        self.layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(
            jax.random.split(KEY, 3)
        )

    def __call__(self, x):
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(x, layer):
            return jnp.tanh(eqx.combine(layer, static)(x)), None

        return jax.lax.scan(step, x, arrays)[0]


class Products(eqx.Module):
    """A layer of somebody else, whose array is declared."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(x @ self.weight)


CASES = {
    "conv-lora": ("lora", lambda: eqx.nn.Conv1d(2, 3, 3, key=KEY), jnp.ones((2, 5))),
    "conv-oft": ("oft", lambda: eqx.nn.Conv1d(2, 4, 3, key=KEY), jnp.ones((2, 5))),
    "embedding": ("lora-embedding", lambda: eqx.nn.Embedding(5, 4, key=KEY), jnp.array(2)),
    "gru": ("lora-recurrent", lambda: eqx.nn.GRUCell(4, 3, key=KEY), X, jnp.ones(3)),
    "scan-lora": ("lora", Stack, X),
    "scan-adalora": ("adalora", Stack, X),
    "attention": (
        "lora-attention",
        lambda: eqx.nn.MultiheadAttention(2, 4, key=KEY),
        *3 * (jnp.outer(jnp.arange(1.0, 4.0), X),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    wrapper, make, *inputs = CASES[name]
    check_conditional(wrapper, make(), *inputs)


def test_quantised_layer():
    layer = quantize(eqx.nn.Linear(64, 4, key=KEY))
    check_conditional("lora", layer, jnp.linspace(-1, 1, 64))


def test_declared_array():
    model = declare(Products(jax.random.normal(KEY, (4, 3))), {"weight": "io"})
    check_conditional("lora", model, X, call=through(lambda model, x: model(x)))


@pytest.mark.parametrize(
    "basis",
    [
        Powers(source=[0.5, 2.0], unit=[1.0, 3.0], log=True),
        Network(source=0.5, size=2, width=3, key=KEY),
        Function(lambda z: jnp.sin(z - 0.5), source=0.5),
        Indexed(3, size=2, key=KEY),
        Hats([0.3, 1.0], source=0.5),
    ],
    ids=lambda basis: type(basis).__name__,
)
def test_bases(basis):
    check_conditional("adalora", eqx.nn.Linear(4, 6, key=KEY), X, basis=basis)

"""Layers of all kinds and methods of the zoo as functions of a parameter, and every basis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures.fno import SpectralConv1d
from tests.pairs import ALL

from jno.lora import Net, SelectionError, extract_adapters, merge_lora
from jno.lora.extending import with_arrays
from jno_lora_arrays import declare, through
from jno_lora_conditional import (
    Conditional,
    Function,
    Hats,
    Indexed,
    Network,
    Powers,
    at,
    from_sets,
)
from jno_lora_conditional.testing import check_conditional, trained_at_random
from jno_lora_quantized import quantize
from jno_lora_zoo.methods import METHODS

KEY = jax.random.key(0)
X = jnp.array([0.3, -0.5, 0.8, 1.1])
LAYER = eqx.nn.Linear(4, 6, key=KEY)


def scanned(stack, x):
    """Layers whose arrays have an axis in front, called by `lax.scan`."""
    arrays, static = eqx.partition(stack, eqx.is_array)
    step = lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None)  # noqa: E731
    return jax.lax.scan(step, x, arrays)[0]


class Products(eqx.Module):
    """A layer of somebody else, whose array is declared."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(x @ self.weight)


CASES = {
    "conv-oft": ("oft", lambda: eqx.nn.Conv1d(2, 4, 3, key=KEY), jnp.ones((2, 5))),
    "embedding": ("lora-embedding", lambda: eqx.nn.Embedding(5, 4, key=KEY), jnp.array(2)),
    "gru": ("lora-recurrent", lambda: eqx.nn.GRUCell(4, 3, key=KEY), X, jnp.ones(3)),
    "attention": (
        *("lora-attention", lambda: eqx.nn.MultiheadAttention(2, 4, key=KEY)),
        *3 * (jnp.outer(jnp.arange(1.0, 4.0), X),),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    wrapper, make, *inputs = CASES[name]
    check_conditional(wrapper, make(), *inputs)


@pytest.mark.slow
def test_a_stack_that_is_scanned():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jax.random.split(KEY, 3))
    check_conditional("adalora", stack, X, call=scanned)


@pytest.mark.slow
def test_quantised_layer():
    layer = quantize(eqx.nn.Linear(64, 4, key=KEY))
    x = jnp.linspace(-1, 1, 64)
    net = Net(layer).freeze().lora(rank=2)
    conditional = trained_at_random(Conditional(net, Powers(source=0.5)))
    np.testing.assert_array_equal(at(conditional, 0.5)(x), layer(x))
    zs = jnp.array([0.5, 0.7, 1.2])
    outputs = jax.jit(jax.vmap(lambda z: at(conditional, z)(x)))(zs)
    for z, output in zip(zs, outputs, strict=True):
        merged = merge_lora(with_arrays(at(conditional, z)))
        np.testing.assert_allclose(output, merged(x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(outputs[0], outputs[1])


def in_its_precision(layer, x):
    """foundax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return layer(x)


@pytest.mark.slow
def test_spectral_weights():
    """CP factors of complex weights, and two sets of them interpolated."""
    layer = SpectralConv1d(2, 3, 2, key=KEY)
    x = jnp.outer(jnp.sin(jnp.arange(6.0)), jnp.array([1.0, -0.5]))
    check_conditional("cp", layer, x, call=in_its_precision)
    net = Net(layer).freeze().lora(rank=1, wrapper="cp")
    conditional = trained_at_random(Conditional(net, Powers(source=0.5)))
    sets = [(z, extract_adapters(at(conditional, z))) for z in (0.4, 0.9)]
    between = from_sets(layer, sets, source=0.5)
    for z in (0.4, 0.5, 0.9):
        expected = in_its_precision(at(conditional, z), x)
        np.testing.assert_allclose(in_its_precision(at(between, z), x), expected, atol=1e-6)


@pytest.mark.slow
def test_declared_array():
    model = declare(Products(jax.random.normal(KEY, (4, 3))), {"weight": "io"})
    check_conditional("lora", model, X, call=through(lambda model, x: model(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "basis",
    [
        Powers(source=[0.5, 2.0], unit=[1.0, 3.0], log=True),
        Network(source=0.5, size=2, width=3, key=KEY),
        Function(lambda z: jnp.sin(z - 0.5), source=0.5),
        Indexed(3, size=2, key=KEY),
        Hats([1.0], source=0.5, extrapolate=True),  # without a kink at the source
    ],
    ids=lambda basis: type(basis).__name__,
)
def test_bases(basis):
    check_conditional("adalora", LAYER, X, basis=basis)


REFUSED = {
    "DeLoRA": "has the same update for lora_B of every size",
    "TiedLoRA": "trains an array that several layers share",
    "VBLoRA": "trains an array that several layers share",
}
# Start from a decomposition of the weight.
ROUNDED_START = {"PiSSA", "OLoRA", "CorDA", "MiLoRA", "LoRAGA", "LoRAOne", "LoRANull"}
# Starts exactly, but divides by a norm when it is called.
ROUNDED_CALL = {"DoRA"}

# One method of each way to start, to move and to be refused; `make test-all` runs all methods.
CHOSEN = ("LoRA", "OFT", "HRA", "EVA", "PiSSA", "DoRA", *REFUSED)
RUN = [method for method in METHODS if ALL or method.__name__ in CHOSEN]


def statistics():
    rng = np.random.default_rng(0)
    return {
        "": {
            "input_covariance": jnp.eye(4) + 0.3,
            "input_mean": jnp.full(4, 0.1),
            "gradient": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        }
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", RUN, ids=lambda method: method.__name__)
def test_methods(method):
    name = method.__name__
    if name in REFUSED:
        net = Net(LAYER).freeze().lora(rank=2, wrapper=method.variant)
        with pytest.raises(SelectionError, match=f"<root>: {name}Linear {REFUSED[name]}"):
            Conditional(net, Powers(source=0.0))
        return
    check_conditional(
        method.variant,
        LAYER,
        X,
        statistics=statistics(),
        film=True,  # the other laws are without it
        exact=name not in ROUNDED_START,
        rounding=1e-6 if name in ROUNDED_START | ROUNDED_CALL else None,
    )

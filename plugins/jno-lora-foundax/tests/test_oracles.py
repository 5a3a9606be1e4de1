"""Methods on foundax's layers in double precision: its law, loops, and every derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax_cases import CONV_TRANSPOSES, CONVS, SUBSAMPLED, filled, foundax_regime, run
from foundax_cases.maps import (
    convolution,
    kernel_of,
    matrix_of,
    subsampled,
    transposed_convolution,
)
from tests.pairs import methods_on
from zoo_cases import assert_close, cast_floats
from zoo_cases.oracle import VALUE, Oracle

import jno_lora_foundax as package

RANK = 3

# Of each kind: its layers, the one that every method is tried on, and what such a layer computes.
KINDS = {
    "ChannelLastConv": (CONVS, "Conv2d", convolution),
    "ChannelLastConvTranspose": (CONV_TRANSPOSES, "ConvTranspose2d", transposed_convolution),
    "SubsampledLinear": (SUBSAMPLED, "subsample_in", subsampled),
}
everywhere = pytest.mark.parametrize(
    ("method", "kind", "name"),
    # On the other layers a method with a law of its own for each row, and one without.
    [
        (method, kind, name)
        for kind, (layers, main, _) in KINDS.items()
        for name in layers
        for method in (methods_on(kind) if name == main else ["LoRA", "DoRA"])
    ],
    scope="module",
)


def made(kind, name):
    """A layer, and what it is called with."""
    layers, *_ = KINDS[kind]
    key = jax.random.key(1)
    return filled(layers[name].make, key), layers[name].data(key)


def oracle(method, kind, name):
    layer, inputs = made(kind, name)
    *_, apply = KINDS[kind]

    def matrix(layer):
        weight = np.asarray(layer.weight).astype(np.float64)
        return weight if kind == "SubsampledLinear" else matrix_of(weight)

    def output(layer, W, at, *inputs):
        weight = W if kind == "SubsampledLinear" else kernel_of(W, layer.weight.shape)
        return apply(layer, weight, *inputs)

    arguments = cast_floats(jax.tree.map(np.asarray, inputs), np.float64)
    with foundax_regime():
        cls = getattr(package, method + kind)
        return Oracle(method, cls, layer, RANK, arguments, output, matrix=matrix)


@everywhere
def test_values_and_every_derivative_are_those_of_numpy(method, kind, name):
    oracle(method, kind, name).check()


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (layers, *_) in KINDS.items() for name in layers]
)
def test_the_loops_are_what_foundax_computes(kind, name):
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    *_, apply = KINDS[kind]
    with jax.enable_x64(True):
        base, inputs = cast_floats(made(kind, name), jnp.float64)
        expected = np.asarray(run(base, *inputs))
    actual = apply(base, np.asarray(base.weight), *map(np.asarray, inputs))
    assert_close(actual, expected, VALUE)

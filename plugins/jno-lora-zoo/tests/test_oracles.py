"""Values and gradients in double precision, against NumPy: the law, and loops for the layer.

The other tests compare in float32, or with JAX's own layers. Here nothing is shared with what is
tested but the adapter's arrays (of VeRA also the two matrices that it draws), so that the bounds
can be those of double precision, and every single derivative is compared with a central difference:
in the adapter's arrays and in the input, of the layer's way to compute its output and of the merged
layer's.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import LATER, METHODS, assert_close, case, cast_floats, on_cases, pairs
from zoo_cases.layers import CONV_TRANSPOSES, CONVS, LINEARS, NORMS
from zoo_cases.maps import output
from zoo_cases.oracle import VALUE, Oracle

# Every method: linear layers with a bias, without one, and with outputs that OFT's and LoKr's
# blocks do not divide; convolutions and their transposes with every setting there is, in three
# dimensions and with groups cut by blocks; norms of rows, which take IA3 out again, of the whole
# and of the spectrum. How they pad is up to the layer itself.
LAYERS = {
    "Linear": ("plain", "no_bias", "rank_above_sizes"),
    "Conv": ("strided", "circular", "groups_straddled", "volume"),
    "ConvTranspose": ("grouped", "output_padding", "circular"),
    "InNorm": ("whole_conv", "spectral_linear"),
}
LINEAR, CONV = ("plain", "rank_above_sizes"), ("strided", "groups_straddled")
NOT_IA3 = tuple(method for method in METHODS if method != "IA3")
EVERY = {"Linear": LINEARS, "Conv": CONVS, "ConvTranspose": CONV_TRANSPOSES, "InNorm": NORMS}
OTHERS = {kind: [name for name in EVERY[kind] if name not in LAYERS[kind]] for kind in EVERY}
OTHERS["InNorm"].remove("rows_linear")

everywhere = on_cases(
    [
        *pairs(**LAYERS),
        # The later methods share the layers' operations with the first ones.
        *pairs(*LATER, Linear=LINEAR, Conv=CONV),
        *pairs(*NOT_IA3, InNorm=["rows_linear"]),
        # Every other layer, by a method whose factors, norm and scale the layer's kind must serve.
        *pairs("DoRA", **OTHERS),
        *pairs("OFT", Conv=["groups"], ConvTranspose=["groups"]),
    ]
)


@functools.lru_cache(maxsize=8)  # the tests of one case follow each other
def oracle(adapter, name):
    base = case(adapter.kind, name)
    arguments = tuple(np.asarray(x, np.float64) for x in base.arguments())
    call = calls(base.layer)
    return Oracle(adapter.method, adapter.cls, base.layer, base.rank, arguments, output, **call)


def calls(layer):
    """How a layer is called that has a state: its vectors are an output as well."""
    if not isinstance(layer, eqx.nn.SpectralNorm):
        return {}

    def call(layer, x):
        state = eqx.nn.State(layer)
        y, state = layer(x, state)
        return y, state.get(layer.uv_index)

    return {"call": call}


@everywhere
def test_the_merged_weight_is_the_law_to_double_precision(adapter, base):
    oracle(adapter, base.name).check_merged()


@everywhere
def test_the_output_is_that_of_loops_to_double_precision(adapter, base):
    oracle(adapter, base.name).check_output()


@everywhere
def test_every_derivative_is_a_central_difference_of_the_loops(adapter, base):
    oracle(adapter, base.name).check_derivatives()


@pytest.mark.parametrize("kind", EVERY)
def test_the_loops_are_what_equinox_computes(kind):
    # The oracle must not be wrong in the same way: it is right for layers without adapters.
    for name in EVERY[kind]:
        with jax.enable_x64(True):
            base = case(kind, name)
            layer, inputs = cast_floats(base.layer, jnp.float64), base.arguments(jnp.float64)
            call = calls(layer).get("call", lambda layer, *inputs: layer(*inputs))
            expected = jax.tree.map(np.asarray, call(layer, *inputs))
            W = base.matrix()
            actual = output(layer, W, W, *map(np.asarray, inputs))
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert_close(one, other, VALUE)

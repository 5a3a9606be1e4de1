"""Values and gradients in double precision, against NumPy: the law, and loops for the layer.

The other tests compare in float32, or with JAX's own layers. Here nothing is shared with what is
tested but the adapter's arrays (of VeRA also the two matrices that it draws), so that the bounds
can be those of double precision, and every single derivative is compared with a central difference:
in the adapter's arrays and in the input, of the layer's way to compute its output and of the merged
layer's.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import LATER, METHODS, assert_close, case, cast_floats, on_cases, pairs
from zoo_cases.layers import CONV_TRANSPOSES, CONVS, LINEARS, NORMS
from zoo_cases.maps import output
from zoo_cases.oracle import VALUE, Oracle

EVERY = {"Linear": LINEARS, "Conv": CONVS, "ConvTranspose": CONV_TRANSPOSES, "InNorm": NORMS}
# Norms of rows take IA3 out again.
WITHOUT_ROWS = [name for name in NORMS if not name.startswith("rows")]
NOT_IA3 = tuple(method for method in METHODS if method != "IA3")
# The later methods share the layers' operations with the first ones.
OF_LATER = {"Linear": ("plain", "rank_above_sizes"), "Conv": ("strided", "groups_straddled")}


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


@on_cases(
    [
        *pairs(**EVERY | {"InNorm": WITHOUT_ROWS}),
        *pairs(*NOT_IA3, InNorm=[name for name in NORMS if name not in WITHOUT_ROWS]),
        *pairs(*LATER, **OF_LATER),
    ],
    layers=2,
)
def test_values_and_every_derivative_are_those_of_numpy(adapter, base):
    oracle(adapter, base.name).check()


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

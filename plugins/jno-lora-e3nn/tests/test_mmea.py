"""MMEA: the law of the paper, the symmetry, and the layers that it takes."""

import dataclasses
import re

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import Net, WrapperError, merge_lora, plan_lora
from jno_lora_e3nn import MMEA
from jno_lora_testing import WrapperCase, parametrize_with_checks, rotation

# Two groups of even scalars, odd scalars, which are not invariant under inversions, and vectors.
INPUTS, OUTPUTS = "3x0e + 2x0o + 2x1o", "2x1o + 2x0e + 4x0o + 0e"
CHANNELS, SCALARS, R = 9, 3, 2


def layer(key, **options):
    options = {"irreps_in": INPUTS, "irreps_out": OUTPUTS, "biases": True} | options
    return e3nn.equinox.Linear(key=key, **options)


def inputs(key):
    return (e3nn.normal(INPUTS, key, (4,)),)


def indexed(key):
    return layer(key, biases=False, linear_type="indexed", num_indexed_weights=3)


def indexed_inputs(key):
    return jnp.array([0, 2, 1, 2]), *inputs(key)


def mixed(key):
    return layer(key, biases=False, linear_type="mixed", weights_dim=3, channel_out=2)


def mixed_inputs(key):
    # One row of weights for all inputs.
    return jax.random.normal(key, (1, 3)), *inputs(key)


# Layers of e3nn that are alike have unlike structures: the kit's layers are copies of one layer.
TEMPLATE = layer(jax.random.key(0))


def base_of_the_kit(key):
    return jax.tree.map(lambda w: jax.random.normal(key, w.shape), TEMPLATE)


ROTATION = rotation(INPUTS, OUTPUTS)
SIZE = R * (SCALARS + 1) + CHANNELS * (R + 1)


CASE = WrapperCase(MMEA, base_of_the_kit, inputs, rank=R, parameters=SIZE, symmetries=[ROTATION])


@parametrize_with_checks([dataclasses.replace(CASE, call=lambda layer, x: layer(x).array)])
def test_conformance(check):
    check()


@eqx.filter_jit
def run(layer, x):
    return layer(*x)


def by_the_paper(adapter, scalars, y, multiplicities):
    """The law in NumPy, for one row `y` of a layer's outputs: `(multiplicity, dimension, even)`."""
    down, down_bias, up, up_bias = (
        np.asarray(getattr(adapter, field), np.float64) for field in MMEA.adapter_fields
    )
    h = down @ scalars + down_bias
    g = up @ (h / (1 + np.exp(-h))) + up_bias
    result, channel, place = [], 0, 0
    for multiplicity, dimension, is_even_scalar in multiplicities:
        for _ in range(multiplicity):
            block = y[place : place + dimension]
            result.append(block + g[channel] if is_even_scalar else np.exp(g[channel]) * block)
            channel, place = channel + 1, place + dimension
    assert (channel, place) == (len(g), len(y))
    return np.concatenate(result)


@pytest.mark.parametrize(
    ("make", "make_inputs", "copies"),
    [(layer, inputs, 1), (indexed, indexed_inputs, 1), (mixed, mixed_inputs, 2)],
    ids=["vanilla", "indexed", "mixed"],
)
def test_the_law_of_the_paper_in_float64(make, make_inputs, copies, getkey):
    # e3nn promotes the indices of an indexed layer with its features.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        base, x = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            (make(getkey()), make_inputs(getkey())),
        )
        adapter = MMEA(base, R, key=getkey())
        y, same = run(base, x), run(adapter, x)
        np.testing.assert_array_equal(same.array, y.array)  # nothing changes at first
        adapter = perturb(adapter)
        changed = run(adapter, x)
        changes = [adapter.up.dtype, changed.array.dtype]
    assert changes == [np.float64] * 2 and changed.irreps == base.irreps_out
    scalars = np.asarray(x[-1].array)[:, :SCALARS]
    expected = [
        by_the_paper(adapter, s, row.ravel(), copies * [(2, 3, 0), (2, 1, 1), (4, 1, 0), (1, 1, 1)])
        for s, row in zip(scalars, np.asarray(y.array), strict=True)
    ]
    np.testing.assert_allclose(np.asarray(changed.array).reshape(4, -1), expected, rtol=1e-12)


def test_channels_without_a_path_stay_zero(getkey):
    """Zeros are equivariant, and a gain keeps them."""
    base = layer(getkey(), irreps_out="2x0e + 2e", force_irreps_out=True, biases=False)
    (x,) = inputs(getkey())
    y = perturb(MMEA(base, R, key=getkey()))(x)
    assert y.irreps == "2x0e + 2e" and not y.filter("2e").array.any()


def test_layers_without_scalars_are_left_out_with_the_reason(getkey):
    vectors = layer(getkey(), irreps_in="2x1o", irreps_out="1o", biases=False)
    base = {"vectors": vectors, "scalars": TEMPLATE}
    plan = plan_lora(base, R, wrapper="mmea")
    assert {row.path: row.status for row in plan} == {
        "vectors": "no wrapper applies",
        "scalars": "wrapped",
    }
    reason = r"the gate reads even scalars \(0e\), and its inputs are 2x1o"
    assert re.search(reason, str(plan))
    with pytest.raises(ValueError, match=r"inputs are 2x1o\. Choose layers that read scalars"):
        MMEA(vectors, R, key=getkey())


def test_a_merge_is_refused_with_the_path(getkey):
    net = Net({"first": layer(getkey())}).freeze().lora(rank=R, wrapper="mmea")
    with pytest.raises(WrapperError, match=r"first[\s\S]*gains depend on the layer's input"):
        merge_lora(net.module)

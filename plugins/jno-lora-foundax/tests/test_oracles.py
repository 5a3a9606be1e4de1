"""Methods on foundax's layers in double precision: the law by NumPy, and every derivative."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax_cases import (
    CONV_TRANSPOSES,
    CONVS,
    SUBSAMPLED,
    filled,
    foundax_regime,
    kernel_of,
    matrix_of,
    run,
)
from tests.pairs import methods_on
from zoo_cases import cast_floats
from zoo_cases.oracle import Oracle

import jno_lora_foundax as package

RANK = 3

# Of each kind: its layers, and the one that every method is tried on.
KINDS = {
    "ChannelLastConv": (CONVS, "Conv2d"),
    "ChannelLastConvTranspose": (CONV_TRANSPOSES, "ConvTranspose2d"),
    "SubsampledLinear": (SUBSAMPLED, "subsample_in"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "name"),
    # On the other layers a method with a law of its own for each row.
    [
        (method, kind, name)
        for kind, (layers, main) in KINDS.items()
        for name in layers
        for method in (methods_on(kind) if name == main else ["DoRA"])
    ],
    scope="module",
)
def test_values_and_every_derivative_are_those_of_numpy(method, kind, name):
    case, key = KINDS[kind][0][name], jax.random.key(1)
    layer, inputs = filled(case.make, key), case.data(key)
    is_matrix = kind == "SubsampledLinear"

    def matrix(layer):
        weight = np.asarray(layer.weight).astype(np.float64)
        return weight if is_matrix else matrix_of(weight)

    def output(layer, W, at, *inputs):
        weight = W if is_matrix else kernel_of(W, layer.weight.shape)
        with jax.enable_x64(True):
            adapted = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(weight))
            return np.asarray(run(adapted, *map(jnp.asarray, inputs)))

    arguments = cast_floats(jax.tree.map(np.asarray, inputs), np.float64)
    with foundax_regime():
        cls = getattr(package, method + kind)
        Oracle(method, cls, layer, RANK, arguments, output, matrix=matrix).check()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONV_TRANSPOSES)
def test_a_row_of_a_transposed_kernel_belongs_to_an_output(name, getkey):
    """The layers have as many outputs as inputs, and name the axes the other way round."""
    base, (x,) = filled(CONV_TRANSPOSES[name].make, getkey()), CONV_TRANSPOSES[name].data(getkey())
    kind = package.ChannelLastConvTransposeLayer
    changed = kind.with_matrix(base, kind.matrix(base).at[1].multiply(2))
    moved = np.any(np.asarray(run(changed, x) != run(base, x)), axis=tuple(range(x.ndim - 1)))
    assert moved.tolist() == [False, True, False, False]

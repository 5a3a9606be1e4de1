"""The axes of foundax's layers are what their kinds say.

`test_oracles.py` has the laws, in double precision.
"""

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
    perturbed,
    run,
)
from zoo_cases import ALL_METHODS

import jno_lora_foundax as package
from jno_lora_foundax import ChannelLastConvLayer, ChannelLastConvTransposeLayer
from jno_lora_zoo import ConvLayer

KINDS = {
    "ChannelLastConv": CONVS,
    "ChannelLastConvTranspose": CONV_TRANSPOSES,
    "SubsampledLinear": SUBSAMPLED,
}


def without_bias(layer):
    return eqx.tree_at(lambda m: m.bias, layer, None, is_leaf=lambda leaf: leaf is None)


@pytest.mark.parametrize(
    ("name", "spatial"), [("Conv1dNHWC", "w"), ("Conv2dNHWC", "hw"), ("Conv3dNHWC", "dhw")]
)
def test_the_matrix_is_that_of_the_same_convolution_in_equinox(name, spatial, getkey):
    ours = without_bias(filled(CONVS[name].make, getkey()))
    *kernel_size, inputs, outputs = ours.weight.shape
    theirs = eqx.nn.Conv(
        len(spatial),
        inputs,
        outputs,
        kernel_size,
        ours.strides,
        use_bias=False,
        key=getkey(),
        padding=ours.padding,
    )
    kernel = jnp.einsum(f"{spatial}io->oi{spatial}", ours.weight)
    theirs = eqx.tree_at(lambda m: m.weight, theirs, kernel)
    x = CONVS[name].data(getkey())[0]
    y = theirs(jnp.moveaxis(x, -1, 0))
    np.testing.assert_allclose(run(ours, x), jnp.moveaxis(y, 0, -1), rtol=1e-4, atol=1e-5)
    matrix = ChannelLastConvLayer.matrix(ours)
    np.testing.assert_array_equal(matrix, ConvLayer.matrix(theirs))
    restored = ChannelLastConvLayer.with_matrix(ours, matrix)
    np.testing.assert_array_equal(restored.weight, ours.weight)


@pytest.mark.parametrize("name", CONV_TRANSPOSES)
def test_a_transposed_kernel_is_read_as_the_call_reads_it(name, getkey):
    # Rows of the matrix belong to outputs, and its slow columns to inputs.
    layer = CONV_TRANSPOSES[name]
    base, (x,) = without_bias(filled(layer.make, getkey())), layer.data(getkey())
    W = np.asarray(ChannelLastConvTransposeLayer.matrix(base)).reshape(4, 4, -1)
    factors = np.arange(1, 5, dtype=np.float32)

    def run_with(matrix, x):
        matrix = jnp.asarray(matrix.reshape(4, -1))
        return run(ChannelLastConvTransposeLayer.with_matrix(base, matrix), jnp.asarray(x))

    rows, columns = factors[:, None, None] * W, factors[:, None] * W
    y, y_factors = run(base, x), run(base, jnp.asarray(factors * np.asarray(x)))
    np.testing.assert_allclose(run_with(rows, x), factors * np.asarray(y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run_with(columns, x), y_factors, rtol=1e-4, atol=1e-5)


def test_a_call_of_mpp_uses_the_part_of_the_update_that_its_labels_choose(getkey):
    layer = SUBSAMPLED["subsample_in"]
    base, (x, labels) = filled(layer.make, getkey()), layer.data(getkey())
    wrapper = perturbed(package.LoRASubsampledLinear(base, 3, 3.0, key=getkey()))
    W = np.asarray(base.weight + wrapper.lora_B @ wrapper.lora_A)[:, np.asarray(labels)]
    expected = (7 / 3) ** 0.5 * (np.asarray(x) @ W.T + np.asarray(base.bias))
    np.testing.assert_allclose(run(wrapper, x, labels), expected, rtol=1e-4, atol=1e-5)
    shorter = run(wrapper, x[..., :1], labels[:1])
    assert shorter.shape == (2, 5)


def test_a_batch_and_one_of_it_are_the_same(getkey):
    base = filled(CONVS["Conv2dNHWC"].make, getkey())
    wrapper = perturbed(package.DoRAChannelLastConv(base, 3, 1.0, key=getkey()))
    x = jax.random.normal(getkey(), (2, 5, 4, 3))
    one = run(wrapper, x[1])
    np.testing.assert_allclose(run(wrapper, x)[1], one, rtol=1e-4, atol=1e-5)
    mapped = run(jax.vmap(wrapper), x)
    np.testing.assert_allclose(mapped[1], one, rtol=1e-4, atol=1e-5)


def test_there_is_one_automatic_adapter_of_each_kind():
    adapters = [getattr(package, m + kind) for kind in KINDS for m in ALL_METHODS]
    spectral = ("LoRASpectral", "rsLoRASpectral", "GainSpectral", "CPSpectral")
    adapters += [getattr(package, name) for name in spectral]
    assert [cls.__name__ for cls in adapters if cls.auto] == [
        *("LoRA" + kind for kind in KINDS),
        "LoRASpectral",
    ]

"""The rows that calibration sees: the layer's matrix times its inputs gives its outputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jno.lora
import jno_lora_zoo
from jno.lora import WrapperError

KEY = jax.random.key(0)
LAYERS = {
    "linear": (eqx.nn.Linear(5, 3, key=KEY), (5,), "Linear"),
    "linear, no bias, columns": (eqx.nn.Linear(5, 3, use_bias=False, key=KEY), (5, 4), "Linear"),
    "linear, scalars": (eqx.nn.Linear("scalar", "scalar", key=KEY), (), "Linear"),
    "conv": (
        eqx.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, key=KEY),
        (4, 7, 8),
        "Conv",
    ),
    "conv, circular": (
        eqx.nn.Conv1d(2, 3, 3, padding="SAME", padding_mode="CIRCULAR", key=KEY),
        (2, 6),
        "Conv",
    ),
    "transposed": (eqx.nn.ConvTranspose1d(4, 5, 3, stride=2, key=KEY), (4, 6), "ConvTranspose"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_times_the_inputs_gives_the_outputs(name):
    layer, shape, suffix = LAYERS[name]
    cls = getattr(jno_lora_zoo, f"LoRA{suffix}")
    x = jax.random.normal(jax.random.key(1), shape)
    rows, y = cls.inputs_of(layer, x), cls.outputs_of(layer, layer(x))
    W, b = cls.matrix(layer), cls.bias_of(layer)
    groups = getattr(layer, "groups", 1)
    # The rows of one group come after those of another, each for its own outputs.
    per_group = rows.reshape(groups, -1, rows.shape[1])
    parts = zip(per_group, jnp.split(W, groups), strict=True)
    expected = jnp.concatenate([own @ part.T for own, part in parts], axis=1)
    expected = expected if b is None else expected + b[None]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_inside_of_a_norm():
    layer = eqx.nn.WeightNorm(eqx.nn.Linear(5, 3, key=KEY))
    x = jax.random.normal(jax.random.key(1), (5,))
    rows = jno_lora_zoo.LoRAInNorm.inputs_of(layer, x)
    np.testing.assert_array_equal(rows, x[None])
    assert jno_lora_zoo.LoRAInNorm.outputs_of(layer, layer(x)).shape == (1, 3)


def test_a_convolution_that_may_do_more_is_refused():
    class Scaled(eqx.nn.Conv1d):
        def __call__(self, x, *, key=None):
            return super().__call__(2 * x)

    layer = Scaled(2, 3, 3, key=KEY)
    with pytest.raises(WrapperError, match="inputs of a Scaled are not known as patches"):
        jno_lora_zoo.EVAConv.inputs_of(layer, jnp.ones((2, 5)))


def test_attention_and_convolutions_are_calibrated_as_they_are_called():
    model = [
        eqx.nn.Conv1d(3, 4, 3, padding=1, key=KEY),
        eqx.nn.MultiheadAttention(2, 4, key=KEY),
    ]
    batch = jax.random.normal(jax.random.key(1), (5, 3, 6))

    def run(model, x):
        x = jnp.tanh(model[0](x)).T
        return model[1](x, x, x)

    def loss(model, batch):
        return jnp.mean(jax.vmap(lambda x: run(model, x))(batch) ** 2)

    net = jno.lora.Net(model).freeze()
    net.lora(rank=2, wrapper=["eva", "lora"], calibrate=([batch], loss))
    assert {row.wrapper for row in net.summary()} == {
        jno_lora_zoo.EVAConv,
        jno_lora_zoo.EVALinear,
    }
    expected, found = (jax.vmap(lambda x, m=m: run(m, x))(batch) for m in (model, net.module))
    np.testing.assert_allclose(found, expected, atol=1e-5)

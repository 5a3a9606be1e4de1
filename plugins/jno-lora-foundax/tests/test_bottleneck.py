"""Bottlenecks: the law in NumPy, on every layer that they claim, and what they refuse."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures import common, unet
from foundax.architectures.linear import Linear
from foundax_cases import (
    CONV_TRANSPOSES,
    CONVS,
    SPECTRAL,
    SUBSAMPLED,
    filled,
    foundax_regime,
    normal,
    perturbed,
    run,
)
from jax.experimental.jet import jet
from zoo_cases import assert_close, cast_floats, central_difference

from jno.lora import Net, WrapperError, plan_lora
from jno_lora_foundax import BottleneckChannelLastConv, BottleneckConv, BottleneckLinear
from jno_lora_zoo import LoRALinear

ChannelLast = unet.Conv1dNHWC | common.Conv2d
CLASSES = (BottleneckChannelLastConv, BottleneckConv, BottleneckLinear)


def linear(*sizes, **options):
    return lambda key: eqx.nn.Linear(*sizes, key=key, **options)


def convolution(*args, **options):
    return lambda key: eqx.nn.Conv(*args, key=key, **options)


STRIDED = convolution(2, 4, 6, 3, padding=1, stride=2, groups=2)
# The class, the layer, its inputs, and the axis of the channels.
LAYERS = {
    "Linear": (BottleneckLinear, linear(4, 5), normal(4), 0),
    "columns": (BottleneckLinear, linear(4, 5, use_bias=False), normal(4, 3), 0),
    "scalars": (BottleneckLinear, linear("scalar", "scalar"), normal(), 0),
    "batched": (BottleneckLinear, lambda key: Linear(4, 5, key=key), normal(2, 3, 4), -1),
    "pointwise": (BottleneckConv, convolution(1, 4, 5, 1), normal(4, 6), 0),
    "strided": (BottleneckConv, STRIDED, normal(4, 5, 6), 0),
    **{
        name: (BottleneckChannelLastConv, CONVS[name].make, CONVS[name].data, -1)
        for name in ("Conv1dNHWC", "Conv2d", "grouped")  # a batch, groups
    },
}


def layer_and_input(name, key):
    cls, make, data, axis = LAYERS[name]
    return cls, filled(make, key), data(key)[0], axis


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def read_by(row, layer, x, axis):
    """The output of the layer for each group of channels, with this kernel for all outputs."""
    if isinstance(layer, ChannelLast):
        *sizes, inputs, _ = layer.weight.shape
        kernel = np.moveaxis(row.reshape(inputs, *sizes), 0, -1)[..., None]
    else:
        kernel = row.reshape(1, *layer.weight.shape[1:])
    bias = None if layer.bias is None else jnp.zeros_like(layer.bias)
    kernel = jnp.asarray(np.broadcast_to(kernel, layer.weight.shape))
    plain = eqx.tree_at(
        lambda m: (m.weight, m.bias), layer, (kernel, bias), is_leaf=lambda leaf: leaf is None
    )
    y = np.moveaxis(np.atleast_1d(run(plain, x)), axis, 0)
    return y.reshape(getattr(layer, "groups", 1), -1, *y.shape[1:])[:, 0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_law(name, getkey):
    cls, layer, x, axis = layer_and_input(name, getkey())
    assert cls.applies_to(layer) and not any(o.applies_to(layer) for o in CLASSES if o is not cls)
    adapter = cls(layer, 3, 6.0, key=getkey())
    assert adapter.rank == 3
    # Not compiled: in two programs XLA may round `w x + b` differently.
    with foundax_regime():
        np.testing.assert_array_equal(adapter(x), layer(x))
    adapter = perturbed(adapter)
    A, a, B = map(np.asarray, (adapter.down_weight, adapter.down_bias, adapter.up_weight))
    h = gelu(np.stack([read_by(row, layer, x, axis) + a[i] for i, row in enumerate(A)]))
    B = B.reshape(h.shape[1], -1, 3)
    update = np.concatenate([np.tensordot(B[g], h[:, g], 1) for g in range(len(B))])
    y = np.asarray(run(layer, x))
    expected = y + 2.0 * np.moveaxis(update, 0, axis).reshape(y.shape)
    np.testing.assert_allclose(run(adapter, x), expected, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(expected - y)) > 1e-2


def test_only_layers_whose_channels_are_known(getkey):
    cases = (*CONV_TRANSPOSES.values(), *SUBSAMPLED.values(), *SPECTRAL.values())
    refused = [filled(case.make, getkey()) for case in cases]
    dense = eqx.nn.Linear(3, 2, key=getkey())
    refused += [
        *(eqx.nn.ConvTranspose1d(2, 2, 3, key=getkey()), eqx.nn.LayerNorm(3)),
        *(LoRALinear(dense, 2, 1.0, key=getkey()), BottleneckLinear(dense, 2, 1.0, key=getkey())),
        *(None, 3, "x", jnp.ones((3, 3)), object()),
    ]
    own = [
        (Rows(3, 2, key=getkey()), BottleneckLinear),
        (Batches(2, 4, 3, key=getkey()), BottleneckConv),
    ]
    refused += [layer for layer, _ in own]
    assert not any(cls.applies_to(thing) for cls in CLASSES for thing in refused)
    for layer, cls in own:
        assert f"which axis of its output a {type(layer).__name__} has" in cls.why_not(layer)


class Rows(eqx.nn.Linear):
    """Takes a batch, with the channels last."""

    def __call__(self, x):
        return x @ self.weight.T + self.bias


class Batches(eqx.nn.Conv2d):
    """Takes a batch of images."""

    def __call__(self, x):
        return jax.vmap(super().__call__)(x)


def test_a_bottleneck_is_not_merged_and_is_found_by_its_variant(getkey):
    model = [eqx.nn.Conv1d(2, 4, 1, key=getkey()), Linear(4, 3, key=getkey())]
    net = Net(model).freeze().lora(rank=2, alpha=2.0, wrapper="bottleneck")
    assert [type(layer) for layer in net.module] == [BottleneckConv, BottleneckLinear]
    with pytest.raises(WrapperError, match="bottleneck cannot be merged: it adds a nonlinear"):
        net.merge()
    assert net.module[0].weight is net.module[0].base.weight
    assert plan_lora(model, 2, 2.0, wrapper="auto").rows[0].wrapper is not BottleneckConv


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Linear", "strided"])
def test_every_derivative_of_the_input_and_its_gradients(name, getkey):
    # The kit compares derivatives with the merged layer, and there is none.
    cls, layer, x, _ = layer_and_input(name, getkey())
    with jax.enable_x64(True):
        adapter = perturbed(cls(layer, 3, 6.0, key=getkey()))
        adapter, x = cast_floats((adapter, x), jnp.float64)
        u = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

        def along(adapter, t):
            return jnp.sum(jnp.sin(adapter(x + t * u)))

        def second(adapter):
            return jax.jvp(jax.grad(lambda t: along(adapter, t)), (0.0,), (1.0,))[1]

        @eqx.filter_jit
        def computed(adapter):
            _, terms = jet(lambda t: along(adapter, t), (0.0,), ([1.0, 0.0],))
            twice = (second(adapter), jax.hessian(lambda t: along(adapter, t))(0.0))
            return terms, twice, eqx.filter_grad(second)(adapter)

        terms, twice, gradient = run(computed, adapter)
        compiled = eqx.filter_jit(along)
        values = [float(run(compiled, adapter, t)) for t in (-1e-3, 0.0, 1e-3)]
        numeric = [(values[2] - values[0]) / 2e-3, np.diff(values, 2)[0] / 1e-6]
        np.testing.assert_allclose(terms, numeric, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(twice, [terms[1]] * 2, rtol=1e-10)
        compiled = eqx.filter_jit(second)
        for field in cls.adapter_fields:

            def of_field(array, field=field):
                moved = eqx.tree_at(lambda m: getattr(m, field), adapter, jnp.asarray(array))
                return float(run(compiled, moved))

            expected = central_difference(of_field, np.asarray(getattr(adapter, field)))
            assert_close(getattr(gradient, field), expected, 1e-5)

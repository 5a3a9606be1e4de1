"""Adapters with a scale and a shift of the outputs (`film=True`) have slots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jno.lora import Net, extract_adapters, read_adapters, save_adapters, swap_adapters
from jno_lora_bank import AdapterBank
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_conditional.testing import trained_at_random
from jno_lora_quantized import quantize

MODEL = eqx.nn.MLP(4, 3, 5, 1, key=jr.key(0))
XS = jr.normal(jr.key(1), (4, 4))


class Stack(eqx.Module):
    layers: eqx.nn.Linear

    def __call__(self, x):
        arrays, static = eqx.partition(self.layers, eqx.is_array)
        step = lambda x, layer: (jnp.tanh(eqx.combine(layer, static)(x)), None)  # noqa: E731
        return jax.lax.scan(step, x, arrays)[0]


def film_sets(model, method="lora", options=None):
    """The sets at three values of a trained conditional, and a plain set of the same method."""
    net = Net(model).freeze().lora(1, wrapper=method, options=options)
    trained = trained_at_random(Conditional(net, Powers(source=0.5), film=True))
    sets = {f"{z}": extract_adapters(at(trained, z)) for z in (0.3, 0.9, 1.1)}
    return {**sets, "plain": extract_adapters(net.module)}


def of_each(model, sets):
    return jnp.stack([swap_adapters(model, s)(x) for s, x in zip(sets.values(), XS, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {"bias": "train"}), ("dora", None), ("ia3-out", None), ("vera", None)],
    ids=["with a bias", "dora", "ia3-out", "with shared arrays"],
)
def test_a_scale_and_a_shift_have_a_slot(method, options, tmp_path):
    sets = film_sets(MODEL, method, options)
    save_adapters(swap_adapters(MODEL, sets["0.3"]), tmp_path / "a.safetensors")
    bank = AdapterBank(MODEL, {**sets, "0.3": read_adapters(tmp_path / "a.safetensors")})
    np.testing.assert_allclose(bank.run([*sets], XS), of_each(MODEL, sets), atol=1e-5)
    np.testing.assert_array_equal(bank(XS[0], None), MODEL(XS[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        eqx.nn.Sequential([eqx.nn.Linear(4, 3, use_bias=False, key=jr.key(0))]),
        Stack(eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jr.split(jr.key(2), 3))),
        quantize(MODEL, "int8"),
    ],
    ids=["without a bias", "a stack", "codes"],
)
def test_on_other_layers(model):
    sets = film_sets(model)
    ys = AdapterBank(model, sets).run([*sets], XS)
    np.testing.assert_allclose(ys, of_each(model, sets), atol=1e-5)

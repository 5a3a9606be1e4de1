"""Layers that are alike share one trace of their adapters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet

from jno.lora import apply_lora, resolve
from jno_lora_zoo import LoRALinear, OFTLinear, VBLoRALinear


@pytest.fixture
def traces(monkeypatch):
    """The sizes of the layers, at each trace of a LoRA's forward pass."""
    found = []
    forward = LoRALinear.forward

    def noted(self, x):
        found.append(self.base.out_features)
        return forward(self, x)

    monkeypatch.setattr(LoRALinear, "forward", noted)
    return found


def loss(model, xs):
    return jnp.sum(jax.vmap(model)(xs) ** 2)


def test_layers_that_are_alike_are_traced_once(traces, getkey):
    plain = eqx.nn.MLP(4, 4, 4, 3, key=getkey())  # four layers 4 x 4
    model = apply_lora(plain, 2, key=getkey())
    xs = jax.random.normal(getkey(), (5, 4))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model, xs)
    # The first layer's input does not vary: for JAX it is another function than the others.
    assert len(traces) <= 2
    traces.clear()
    expected = eqx.filter_grad(lambda model: jnp.sum(jnp.stack([model(x) for x in xs]) ** 2))(model)
    assert eqx.tree_equal(grads, expected, rtol=1e-5, atol=1e-5)


def test_so_are_layers_that_share_a_trained_array(monkeypatch, getkey):
    traces = []
    forward = VBLoRALinear.forward
    monkeypatch.setattr(
        VBLoRALinear, "forward", lambda *args: (traces.append(1), forward(*args))[1]
    )
    options = {"vectors": 8, "vector_length": 4, "top_k": 2}
    plain = [eqx.nn.Linear(4, 4, key=getkey()) for _ in range(4)]
    layers = apply_lora(plain, 2, key=getkey(), wrapper="vb-lora", options=options)
    x = jnp.ones(4)
    ys = eqx.filter_jit(lambda layers: [layer(x) for layer in resolve(layers)])(layers)
    assert len(traces) == 1
    np.testing.assert_allclose(ys, [layer(x) for layer in resolve(layers)], rtol=1e-5)


def test_layers_that_differ_are_not(traces, getkey):
    layers = [eqx.nn.Linear(4, 4, key=getkey()), eqx.nn.Linear(4, 3, key=getkey())]
    layers.append(eqx.nn.Linear(3, 3, use_bias=False, key=getkey()))
    model = apply_lora(eqx.nn.Sequential(layers), 2, key=getkey())
    eqx.filter_jit(model)(jnp.ones(4))
    assert traces == [4, 3, 3]
    model(jnp.ones(4))  # calls with values run in Python
    assert traces == 2 * [4, 3, 3]


@pytest.mark.parametrize("inside", [lambda f: f, jax.vmap])
def test_taylor_mode_sees_that_factors_do_not_vary(inside, getkey):
    # `OFT` loops over its factors, which Taylor mode cannot follow.
    adapter = OFTLinear(eqx.nn.Linear(4, 4, key=getkey()), 2, 1.0, key=getkey())
    f = inside(lambda x: jnp.sum(adapter(x) ** 3))
    x = jax.random.normal(getkey(), (3, 4) if inside is jax.vmap else (4,))
    y, (rate,) = jet(f, (x,), ((0.1 * x,),))
    for got, expected in zip((y, rate), jax.jvp(f, (x,), (0.1 * x,)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


class Scaled(LoRALinear):
    """Has a static field of any kind."""

    factor: Any = eqx.field(static=True)

    def __init__(self, *args, factor, **kwargs):
        self.factor = factor
        super().__init__(*args, **kwargs)

    def forward(self, x):
        factor = self.factor[0] if isinstance(self.factor, list) else self.factor
        return factor * super().forward(x)


@pytest.mark.filterwarnings("ignore:.*set as static")
@pytest.mark.parametrize(
    "factors", [(1, 2), ([1], [2]), (0.0, -0.0), (np.ones(4), np.full(4, 2.0))]
)
def test_static_fields_that_differ_share_no_trace(factors, getkey):
    plain = eqx.nn.Linear(4, 4, use_bias=False, key=getkey())
    layers = [Scaled(plain, 2, 1.0, key=getkey(), factor=factor) for factor in factors]
    x = jnp.ones(4)
    leaves, treedef = jax.tree.flatten(layers)  # JAX cannot compare static arrays
    ys = jax.jit(lambda leaves: [at(x) for at in jax.tree.unflatten(treedef, leaves)])(leaves)
    for layer, y in zip(layers, ys, strict=True):
        expected = layer(x)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        assert jnp.array_equal(jnp.signbit(y), jnp.signbit(expected))

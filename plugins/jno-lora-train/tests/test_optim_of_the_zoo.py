"""Optimisers of `jno.lora.optim` on the adapters of the zoo, and the hash of a base under PiSSA."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jno.lora import CheckpointError, Net, apply_lora, load_adapters, lora_trainable_filter
from jno.lora.optim import lora_fa, lora_plus, scale_by_riemannian, side_labels


class Layers(eqx.Module):
    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear
    stack: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(2, 3, 2, key=keys[0])
        self.linear = eqx.nn.Linear(12, 5, key=keys[1])
        self.stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 5, key=key))(
            jax.random.split(keys[2], 2)
        )

    def __call__(self, x):
        h = self.linear(jnp.ravel(jnp.tanh(self.conv(x))))
        return jax.lax.scan(lambda h, layer: (layer(jnp.tanh(h)), None), h, self.stack)[0]


def gradients(model):
    """The trained part, and its gradients for a loss of the model's outputs."""
    params, frozen = eqx.partition(model, lora_trainable_filter(model))
    x = jax.random.normal(jax.random.key(1), (2, 3, 3))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(params):
        return jnp.sum(eqx.combine(params, frozen)(x) ** 2)

    return params, gradient(params)


def updates_of(optimiser, params, grads):
    with jax.numpy_dtype_promotion("standard"):
        return eqx.filter_jit(optimiser.update)(grads, optimiser.init(params), params)[0]


@pytest.mark.parametrize("variant", ["pissa", "dora"])
def test_every_kind_of_layer_is_preconditioned(variant, getkey):
    model = apply_lora(Layers(getkey()), 2, 3.0, key=getkey(), wrapper=variant)
    model = jax.tree.map(lambda a: a + 0.1 if eqx.is_inexact_array(a) else a, model)
    params, grads = gradients(model)
    scaled = updates_of(scale_by_riemannian(1e-2), params, grads)
    for name in ("conv", "linear", "stack"):
        mine, g = getattr(params, name), getattr(grads, name)
        A, B = (np.asarray(a, np.float64) for a in (mine.lora_A, mine.lora_B))
        eye = 1e-2 * np.eye(2)
        np.testing.assert_allclose(
            getattr(scaled, name).lora_A,
            np.linalg.inv(np.swapaxes(B, -1, -2) @ B + eye) @ np.asarray(g.lora_A),
            rtol=2e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            getattr(scaled, name).lora_B,
            np.asarray(g.lora_B) @ np.linalg.inv(A @ np.swapaxes(A, -1, -2) + eye),
            rtol=2e-4,
            atol=1e-4,
        )


def test_lora_fa_corrects_every_kind_of_layer_with_its_scale(getkey):
    options = {"multiplier": 2.0}
    model = apply_lora(Layers(getkey()), 2, 3.0, key=getkey(), wrapper="lora-fa", options=options)
    params, grads = gradients(model)
    corrected = updates_of(lora_fa(model), params, grads)
    for name in ("conv", "linear", "stack"):
        A = np.asarray(getattr(model, name).lora_A, np.float64)
        inverse = np.linalg.inv(A @ np.swapaxes(A, -1, -2)) / (2.0 * 3 / 2) ** 2
        expected = np.asarray(getattr(grads, name).lora_B) @ inverse
        np.testing.assert_allclose(getattr(corrected, name).lora_B, expected, 1e-3, 1e-4)


@pytest.mark.parametrize(("alpha", "multiplier"), [(0.0, None), (3.0, 0.0)])
def test_lora_fa_takes_no_step_if_the_update_does_not_count(alpha, multiplier, getkey):
    options = {} if multiplier is None else {"multiplier": multiplier}
    layer = eqx.nn.Linear(3, 2, key=getkey())
    model = apply_lora(layer, 2, alpha, key=getkey(), wrapper="lora-fa", options=options)
    params = eqx.partition(model, lora_trainable_filter(model))[0]
    corrected = updates_of(lora_fa(model), params, jax.tree.map(jnp.ones_like, params))
    assert jnp.all(corrected.lora_B == 0)


def test_units_have_a_product_for_each_projection(getkey):
    attention = eqx.nn.MultiheadAttention(2, 6, key=getkey())
    model = apply_lora([attention], 2, key=getkey(), wrapper="lora-attention")
    params = eqx.partition(model, lora_trainable_filter(model))[0]
    labels = side_labels(params)[0]
    assert labels.lora_A == {"q": "input", "v": "input"}
    assert labels.lora_B == {"q": "output", "v": "output"}
    grads = jax.tree.map(jnp.ones_like, params)
    scaled = updates_of(scale_by_riemannian(), params, grads)[0]
    A = np.asarray(params[0].lora_A["v"], np.float64)
    expected = np.ones((6, 2)) @ np.linalg.inv(A @ A.T)
    np.testing.assert_allclose(scaled.lora_B["v"], expected, rtol=1e-3, atol=1e-3)
    plus = updates_of(lora_plus(optax.sgd(1.0), 4), params, grads)[0]
    assert jnp.all(plus.lora_B["q"] == -4) and jnp.all(plus.lora_A["q"] == -1)


def test_a_net_saves_the_hash_of_the_layers_that_pissa_changed(tmp_path, getkey):
    model, file = Layers(getkey()), tmp_path / "file"
    Net(model).freeze().lora(2, wrapper="pissa").save_adapters(file)
    load_adapters(model, file, strict="values")
    Net(model).load_adapters(file, strict="values")
    other = eqx.tree_at(lambda m: m.linear.weight, model, model.linear.weight + 1)
    with pytest.raises(CheckpointError, match=r":\n  - linear: the layer has other values.*\nThe"):
        load_adapters(other, file, strict="values")

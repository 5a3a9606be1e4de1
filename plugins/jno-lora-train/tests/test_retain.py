"""The replay penalty, against NumPy in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.gated_adapters import Gated

from jno.lora import SelectionError, apply_lora, retain

X = jax.random.normal(jax.random.key(5), (7, 6))


class Two(eqx.Module):
    """A model with a tree of outputs, one of them an integer, and with a key."""

    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, key=None):
        y = self.layer(self.dropout(x, key=key, inference=key is None))
        wave = y[:2].astype(jnp.float32)
        return {"values": y, "wave": (jax.lax.complex(0 * wave, wave),), "count": jnp.asarray(3)}


@pytest.fixture
def plain():
    return Two(eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.nn.Dropout(0.5))


@pytest.fixture
def adapted(plain):
    model = apply_lora(plain, 2, 4.0, key=jax.random.key(2), wrapper=Gated)
    return eqx.tree_at(lambda m: m.layer.gate, model, jnp.array([0.3, -0.2]))


def outputs(layer, x=X):
    x, W, b = (np.asarray(array, np.float64) for array in (x, layer.weight, layer.bias))
    return x @ W.T + b


def test_squares_are_averaged_over_all_numbers_of_a_tree(plain, adapted):
    difference = outputs(adapted.layer.merge()) - outputs(plain.layer)
    squares = np.concatenate([difference.ravel(), difference[:, :2].ravel()]) ** 2
    value = eqx.filter_jit(retain)(adapted, X, 0.5)
    assert value.shape == () and value.dtype == jnp.float32
    assert float(value) == pytest.approx(0.5 * squares.mean(), rel=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, adapted)
    call = lambda model, x: jax.vmap(model)(x)["values"]  # noqa: E731
    assert retain(half, X.astype(jnp.bfloat16), call=call).dtype == jnp.float32
    # A model that trains in full has its original as base.
    moved = eqx.tree_at(lambda m: m.layer.weight, plain, plain.layer.weight + 0.1)
    difference = outputs(moved.layer) - outputs(plain.layer)
    squares = np.concatenate([difference.ravel(), difference[:, :2].ravel()]) ** 2
    assert float(retain(moved, X, base=plain)) == pytest.approx(squares.mean(), rel=1e-4)


def test_only_the_adapted_half_has_a_gradient(plain, adapted):
    trainable, frozen = eqx.partition(
        adapted, lambda leaf: leaf is adapted.layer.gate or leaf is adapted.layer.lora_B
    )

    def by_hand(t):  # the base is another model, which the derivative does not see
        y = jax.vmap(eqx.combine(t, frozen))(X)["values"] - jax.vmap(plain)(X)["values"]
        return (jnp.sum(y**2) + jnp.sum(y[:, :2] ** 2)) / (7 * 6)

    expected = jax.grad(by_hand)(trainable)
    actual = eqx.filter_grad(lambda model: retain(model, X))(adapted)
    np.testing.assert_allclose(actual.layer.gate, expected.layer.gate, rtol=1e-4)
    np.testing.assert_allclose(actual.layer.lora_B, expected.layer.lora_B, rtol=1e-4, atol=1e-6)
    # The layer is in both halves: its gradient is the gradient of the adapted half alone.
    alone = eqx.filter_grad(lambda model: retain(model, X, base=plain))(adapted)
    np.testing.assert_allclose(actual.layer.base.weight, alone.layer.base.weight, rtol=1e-5)


def test_logits_are_compared_by_their_distributions(plain, adapted):
    def logits(model, x):
        return jax.vmap(model)(x)["values"]

    def log_softmax(z):
        return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))

    new, old = log_softmax(outputs(adapted.layer.merge())), log_softmax(outputs(plain.layer))
    expected = np.mean(np.sum(np.exp(old) * (old - new), axis=-1))
    value = retain(adapted, X, call=logits, distance="kl")
    assert float(value) == pytest.approx(expected, rel=1e-4)

    # A logit that is ruled out in both models counts as nothing, in the gradient too.
    def masked(model, x):
        return jnp.where(jnp.arange(4)[None] == 1, -jnp.inf, logits(model, x))

    value, grads = eqx.filter_value_and_grad(lambda m: retain(m, X, call=masked, distance="kl"))(
        adapted
    )
    assert np.isfinite(float(value)) and np.isfinite(grads.layer.gate).all()


def test_both_models_get_the_same_keys(adapted):
    keys = jax.random.split(jax.random.key(3), 7)

    def call(model, x):
        return jax.vmap(model)(x, keys)["values"]

    dropped = jax.vmap(adapted.dropout)(X, key=keys)
    difference = outputs(adapted.layer.merge(), dropped) - outputs(adapted.layer.base, dropped)
    value = retain(adapted, X, call=call)
    assert float(value) == pytest.approx(np.mean(difference**2), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": "cosine"}, "`distance` must be 'squared' or 'kl', but is 'cosine'"),
        ({"distance": "kl"}, "real logits along a last axis, but the output 'wave/0' is complex64"),
        ({"call": lambda model, x: 3}, "hold no floating or complex numbers"),
        ({"call": lambda model, x: jnp.zeros((0, 3))}, "hold no floating or complex numbers"),
        ({"base": lambda x: {"values": x[:2]}}, "(?s)differ:.*values: float32.7, 4.* float32.7, 2"),
    ],
)
def test_errors_say_what_to_do(adapted, arguments, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        retain(adapted, X, **arguments)


def test_retain_refuses_a_model_without_adapters(plain):
    with pytest.raises(SelectionError, match=r"carries no adapters.*base=original"):
        retain(plain, X)

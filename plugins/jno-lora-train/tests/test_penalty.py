"""The penalties that adapters define are summed; `retain`, the replay penalty, is NumPy's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import Good

from jno.lora import SelectionError, WrapperError, apply_lora
from jno_lora_train import penalty, retain


@pytest.fixture
def layers():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 4, key=key))
    return {
        "one": eqx.nn.Linear(6, 4, key=jax.random.key(0)),
        "stack": stack(jax.random.split(jax.random.key(1), 3)),
        "plain": jnp.ones(2),
    }


@pytest.fixture
def adapted(layers):
    return apply_lora(layers, 2, 4.0, key=jax.random.key(2), wrapper=Gated)


def of_rows(A):
    A = np.asarray(A, np.float64)
    return np.sum((A @ A.T - np.eye(len(A))) ** 2)


def test_penalties_are_summed_over_adapters_and_over_the_layers_of_a_stack(adapted):
    expected = sum(map(of_rows, [adapted["one"].lora_A, *adapted["stack"].lora_A]))
    for found in (penalty(adapted), eqx.filter_jit(penalty)(adapted)):
        assert found.shape == () and found.dtype == jnp.float32
        assert float(found) == pytest.approx(expected, rel=1e-5)
    # The gradient of each adapter is the gradient of its own penalty.
    grads = eqx.filter_grad(penalty)(adapted)
    A = np.asarray(adapted["stack"].lora_A[1], np.float64)
    expected = 4 * (A @ A.T - np.eye(2)) @ A
    np.testing.assert_allclose(grads["stack"].lora_A[1], expected, rtol=1e-4, atol=1e-4)
    assert not np.any(grads["one"].lora_B) and not np.any(grads["plain"])


def test_a_model_without_penalties_has_none(layers):
    for model in (layers, apply_lora(layers, 2, key=jax.random.key(0), wrapper=Good)):
        assert float(penalty(model)) == 0.0
        # It can be added to a loss of any precision.
        assert (jnp.ones((), jnp.bfloat16) + 0.1 * penalty(model)).dtype == jnp.bfloat16


def test_the_sum_is_float32_at_least(adapted):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), eqx.filter(adapted, eqx.is_array))
    assert penalty(half).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = eqx.tree_at(lambda m: m["one"].lora_A, adapted, jnp.ones((2, 6), jnp.float64))
        assert penalty(wide).dtype == jnp.float64
        expected = sum(map(of_rows, [np.ones((2, 6)), *adapted["stack"].lora_A]))
        assert float(penalty(wide)) == pytest.approx(expected)


def test_a_penalty_must_be_one_real_number_of_a_whole_model(adapted, layers):
    class OfRows(Gated):
        def penalty(self):
            return self.lora_A[:, 0]

    model = apply_lora(layers, 2, key=jax.random.key(2), wrapper=OfRows)
    with pytest.raises(WrapperError, match=r"OfRows at 'one'.*one real number.*float32 \(2,\)$"):
        penalty(model)
    with pytest.raises(WrapperError, match="penalty of the Gated at 'one'"):
        penalty(eqx.partition(adapted, lambda leaf: False)[0])


# --- replay: `retain`

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
def moved(plain):
    model = apply_lora(plain, 2, 4.0, key=jax.random.key(2), wrapper=Gated)
    return eqx.tree_at(lambda m: m.layer.gate, model, jnp.array([0.3, -0.2]))


def outputs(layer, x=X):
    x, W, b = (np.asarray(array, np.float64) for array in (x, layer.weight, layer.bias))
    return x @ W.T + b


def test_squares_are_averaged_over_all_numbers_of_a_tree(plain, moved):
    difference = outputs(moved.layer.merge()) - outputs(plain.layer)
    squares = np.concatenate([difference.ravel(), difference[:, :2].ravel()]) ** 2
    value = eqx.filter_jit(retain)(moved, X, 0.5)
    assert value.shape == () and value.dtype == jnp.float32
    assert float(value) == pytest.approx(0.5 * squares.mean(), rel=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, moved)
    call = lambda model, x: jax.vmap(model)(x)["values"]  # noqa: E731
    assert retain(half, X.astype(jnp.bfloat16), call=call).dtype == jnp.float32
    # A model that trains in full has its original as base.
    whole = eqx.tree_at(lambda m: m.layer.weight, plain, plain.layer.weight + 0.1)
    difference = outputs(whole.layer) - outputs(plain.layer)
    squares = np.concatenate([difference.ravel(), difference[:, :2].ravel()]) ** 2
    assert float(retain(whole, X, base=plain)) == pytest.approx(squares.mean(), rel=1e-4)


def test_only_the_adapted_half_has_a_gradient(plain, moved):
    trainable, frozen = eqx.partition(
        moved, lambda leaf: leaf is moved.layer.gate or leaf is moved.layer.lora_B
    )

    def by_hand(t):  # the base is another model, which the derivative does not see
        y = jax.vmap(eqx.combine(t, frozen))(X)["values"] - jax.vmap(plain)(X)["values"]
        return (jnp.sum(y**2) + jnp.sum(y[:, :2] ** 2)) / (7 * 6)

    expected = jax.grad(by_hand)(trainable)
    actual = eqx.filter_grad(lambda model: retain(model, X))(moved)
    np.testing.assert_allclose(actual.layer.gate, expected.layer.gate, rtol=1e-4)
    np.testing.assert_allclose(actual.layer.lora_B, expected.layer.lora_B, rtol=1e-4, atol=1e-6)
    # The layer is in both halves: its gradient is the gradient of the adapted half alone.
    alone = eqx.filter_grad(lambda model: retain(model, X, base=plain))(moved)
    np.testing.assert_allclose(actual.layer.base.weight, alone.layer.base.weight, rtol=1e-5)


def test_logits_are_compared_by_their_distributions(plain, moved):
    def logits(model, x):
        return jax.vmap(model)(x)["values"]

    def log_softmax(z):
        return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))

    new, old = log_softmax(outputs(moved.layer.merge())), log_softmax(outputs(plain.layer))
    expected = np.mean(np.sum(np.exp(old) * (old - new), axis=-1))
    value = retain(moved, X, call=logits, distance="kl")
    assert float(value) == pytest.approx(expected, rel=1e-4)

    # A logit that is ruled out in both models counts as nothing, in the gradient too.
    def masked(model, x):
        return jnp.where(jnp.arange(4)[None] == 1, -jnp.inf, logits(model, x))

    value, grads = eqx.filter_value_and_grad(lambda m: retain(m, X, call=masked, distance="kl"))(
        moved
    )
    assert np.isfinite(float(value)) and np.isfinite(grads.layer.gate).all()


def test_both_models_get_the_same_keys(moved):
    keys = jax.random.split(jax.random.key(3), 7)

    def call(model, x):
        return jax.vmap(model)(x, keys)["values"]

    dropped = jax.vmap(moved.dropout)(X, key=keys)
    difference = outputs(moved.layer.merge(), dropped) - outputs(moved.layer.base, dropped)
    value = retain(moved, X, call=call)
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
def test_errors_say_what_to_do(moved, arguments, message, unchecked):
    with pytest.raises(SelectionError, match=message):
        retain(moved, X, **arguments)


def test_retain_refuses_a_model_without_adapters(plain):
    with pytest.raises(SelectionError, match=r"carries no adapters.*base=original"):
        retain(plain, X)

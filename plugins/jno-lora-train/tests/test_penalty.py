"""The penalties that adapters define are summed; and what the kit says of them and of gates."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import Good

from jno.lora import WrapperError, apply_lora, penalty


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

"""DoRA: zero rows, a norm that is a constant for differentiation, and that is never stored."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import adapters, assert_close, build, cast_floats, fields_of, perturb
from zoo_cases.layers import matrix_of, with_matrix

from jno.lora import DoRALinear, lora_trainable_filter


def gradients_of(wrapper, loss):
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))
    return jax.grad(lambda t: loss(eqx.combine(t, frozen)))(trainable)


@adapters("DoRA")
def test_rows_of_zeros_give_finite_values_and_gradients(adapter, base):
    dtype = jnp.bfloat16 if adapter.kind == "Conv" else jnp.float32
    W = base.matrix()
    W[:3] = 0
    fresh = build(adapter, cast_floats(with_matrix(base.layer, W), dtype), rank=2)
    assert not np.any(matrix_of(fresh.merge())[:3])
    inputs = base.arguments(dtype)

    def both(wrapper):
        return sum(
            jnp.sum(y.astype(jnp.float32)) for y in (wrapper(*inputs), wrapper.merge().weight)
        )

    for wrapper in (fresh, perturb(fresh)):
        values = (wrapper(*inputs), wrapper.merge().weight, gradients_of(wrapper, both))
        for value in jax.tree.leaves(values):
            assert np.isfinite(np.asarray(value).astype(np.float64)).all()


@adapters("DoRA", linear=("plain", "duck"), conv=("plain", "duck"))
def test_a_base_that_changes_changes_the_norm(adapter, base):
    wrapper = build(adapter, base)
    # Twice the weight has the same directions, and the magnitudes are what they were.
    scaled = eqx.tree_at(lambda w: w.base.weight, wrapper, 2 * wrapper.base.weight)
    assert_close(matrix_of(scaled.merge()), base.matrix(), 1e-6)
    inputs = base.arguments()
    assert_close(scaled(*inputs), base.layer(*inputs), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("left", [1e-1, 1e-2, 1e-5])
@adapters("DoRA")
def test_the_norms_keep_their_bounds_where_the_update_nearly_cancels_the_weight(
    adapter, base, left
):
    """The update cancels one row of the weight but for a part."""
    wrapper = perturb(build(adapter, base))
    f, W = fields_of(wrapper), base.matrix()
    update = wrapper.alpha / wrapper.rank * f.lora_B @ f.lora_A
    W[1] = left * W[1] - update[1]
    wrapper = eqx.tree_at(lambda w: w.base, wrapper, with_matrix(base.layer, W))
    W = matrix_of(wrapper.base)
    V, m = W + update, np.asarray(wrapper.magnitude).astype(np.float64)
    norms, merged = np.linalg.norm(V, axis=1), matrix_of(wrapper.merge())
    # The difference loses digits in float32; the norm of the merged rows does not.
    assert_close(merged, m[:, None] * V / norms[:, None], 1e-6 + 2e-7 / left)
    assert_close(np.linalg.norm(merged, axis=1), np.abs(m), 1e-6)
    c = (np.linalg.norm(W, axis=1) + np.linalg.norm(update, axis=1)) / norms
    assert np.max(c) > 0.5 / left
    if left >= 1e-2:  # of the forward pass; the rows that nothing cancels have more roundings
        actual = np.asarray(wrapper.factored_norms()).astype(np.float64)
        assert np.all(np.abs(actual / norms - 1) <= 2 * 6e-8 * c**2 + 1e-6)


def test_the_norm_of_a_layer_with_one_input_is_exact():
    # With one input, an update cancels some row most of the time.
    layer = eqx.nn.Linear(1, 64, use_bias=False, key=jax.random.key(0))
    dora = DoRALinear(layer, 1, 1.0, key=jax.random.key(1))
    left = jnp.geomspace(1e-6, 1, 64)[:, None]
    dora = eqx.tree_at(lambda d: d.lora_B, dora, layer.weight * (left - 1) / dora.lora_A)
    x = jnp.ones(1)
    assert_close(dora(x), dora.merge()(x), 1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@adapters("DoRA")
def test_rows_whose_squares_have_no_number_keep_their_norm(adapter, base, size):
    layer = with_matrix(base.layer, size * base.matrix())
    wrapper = build(adapter, layer)
    assert_close(wrapper.magnitude, np.linalg.norm(matrix_of(layer), axis=1), 1e-6)
    assert_close(matrix_of(wrapper.merge()), matrix_of(layer), 1e-6)

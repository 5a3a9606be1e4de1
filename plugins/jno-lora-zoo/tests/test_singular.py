"""PiSSA, MiLoRA and LoRA-XS: what divides by zero, low precision, and weights without a rank."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import adapters, assert_close, build, cast_floats, fields_of, perturb
from zoo_cases.laws import triplets
from zoo_cases.layers import matrix_of, with_matrix

from jno.lora import WrapperError, apply_lora, lora_trainable_filter


@pytest.mark.parametrize("alpha", [0.0, 0, -1.0])
@adapters("PiSSA", "MiLoRA")
def test_an_alpha_that_is_not_positive_is_an_error(adapter, base, alpha):
    with pytest.raises(ValueError, match="alpha must be greater than 0"):
        adapter.cls(base.layer, 2, alpha, key=jax.random.key(0))


@adapters("PiSSA", "MiLoRA")
def test_the_error_names_the_layer_where_a_model_is_adapted(adapter, base):
    model = {"decoder": [base.layer]}
    with pytest.raises(WrapperError, match="decoder/0"):
        apply_lora(model, rank=2, alpha=0.0, key=jax.random.key(0), wrapper=adapter.cls)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@adapters("PiSSA", "MiLoRA", "LoRAXS")
def test_half_precision_weights_are_decomposed_in_float32(adapter, base, dtype):
    layer = cast_floats(base.layer, dtype)
    wrapper, W = build(adapter, layer, rank=2), matrix_of(layer)
    fields = fields_of(wrapper)
    product = fields.lora_B @ fields.lora_A
    if adapter.method == "LoRAXS":
        expected = triplets(W, slice(0, 2))
    else:
        product = 3.0 / 2 * product
        expected = triplets(W, slice(0, 2) if adapter.method == "PiSSA" else slice(3, 5))
    assert_close(product, expected, 1e-5)


@pytest.mark.parametrize("rows", [0, 1], ids=["zero", "rank_one"])
@adapters("PiSSA", "MiLoRA", "LoRAXS")
def test_weights_of_lower_rank_than_asked_give_finite_numbers(adapter, base, rows):
    W = base.matrix()
    W[rows:] = 0
    layer = with_matrix(base.layer, W)
    wrapper = build(adapter, layer, rank=2)
    assert_close(wrapper(*base.arguments()), layer(*base.arguments()), 1e-5)
    trainable, frozen = eqx.partition(perturb(wrapper), lora_trainable_filter(wrapper))
    gradients = jax.grad(lambda t: jnp.sum(eqx.combine(t, frozen)(*base.arguments())))(trainable)
    for leaf in jax.tree.leaves((wrapper, gradients)):
        assert np.isfinite(leaf).all()


@adapters("PiSSA", "MiLoRA")
def test_the_trained_change_is_a_plain_lora_of_twice_the_rank(adapter, base):
    wrapper = perturb(build(adapter, base))
    f, s = fields_of(wrapper), wrapper.alpha / wrapper.rank
    A = np.concatenate([f.lora_A, f.initial_A])
    B = np.concatenate([f.lora_B, -f.initial_B], axis=1)
    assert_close(matrix_of(wrapper.merge()) - base.matrix(), s * B @ A, 1e-5)


@pytest.mark.parametrize("variant", ["pissa", "olora", "lora-xs"])
@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
def test_a_decomposition_of_nan_is_an_error_that_names_the_array(variant, number):
    layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    broken = eqx.tree_at(lambda layer: layer.weight, layer, layer.weight.at[0, 1].set(number))
    with pytest.raises(WrapperError, match=r"Linear at 'b'.*its weight holds NaN or infinity"):
        apply_lora({"a": layer, "b": broken}, 2, key=jax.random.key(0), wrapper=variant)

"""The option `bias="train"`: an update of the layer's bias, from zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import assert_close, check_kind, perturb

from jno.lora import (
    SelectionError,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_report,
    merge_lora,
    save_adapters,
    stack_adapters,
    to_lora,
    unwrap_lora,
)
from jno.lora.testing import WrapperCase, check_wrapper
from jno_lora_zoo import LoRAConv, LoRALinear, rsLoRAInNorm

KEY = jax.random.key(0)
OPTIONS = {"bias": "train"}
CASES = [
    WrapperCase(
        LoRALinear,
        base=lambda key: eqx.nn.Linear(6, 5, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        options=OPTIONS,
        parameters=2 * 11 + 5,
    ),
    WrapperCase(
        LoRAConv,
        base=lambda key: eqx.nn.Conv2d(4, 6, 3, groups=2, key=key),
        inputs=lambda key: (jax.random.normal(key, (4, 5, 4)),),
        options=OPTIONS,
        parameters=2 * (18 + 6) + 6,
    ),
    WrapperCase(
        rsLoRAInNorm,
        base=lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(6, 5, key=key)),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        options=OPTIONS,
        parameters=2 * 11 + 5,
    ),
]


def test_the_whole_kit_on_a_linear_layer():
    check_wrapper(CASES[0])


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_the_checks_of_the_kind_on_other_layers(case):
    check_kind(case)


def test_with_a_trained_bias_the_update_is_more_than_a_product():
    assert adapted(eqx.nn.Linear(6, 5, key=KEY)).low_rank_update() is None


def adapted(layer):
    return perturb(apply_lora(layer, 2, 4.0, options=OPTIONS, key=KEY))


def test_the_merged_bias_is_the_sum_and_unwrapping_takes_it_out():
    layer = eqx.nn.Linear(6, 5, key=KEY)
    model = adapted(layer)
    assert_close(merge_lora(model).bias, layer.bias + model.bias_update, 1e-6)
    assert bool(jnp.any(model.bias_update != 0))
    assert bool(eqx.tree_equal(unwrap_lora(model), layer))
    (row,) = lora_report(model)
    assert row.trainable == 27


def test_a_layer_without_a_bias_trains_none():
    model = adapted(eqx.nn.Linear(6, 5, use_bias=False, key=KEY))
    assert model.bias_update is None
    assert merge_lora(model).bias is None


def test_a_file_holds_it(tmp_path):
    layer = {"a": eqx.nn.Linear(6, 5, key=KEY)}
    model = adapted(layer)
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters(layer, tmp_path / "a.safetensors")
    assert bool(eqx.tree_equal(loaded, model))


def test_it_is_not_lost_where_only_products_are_combined():
    sets = [extract_adapters({"a": adapted(eqx.nn.Linear(6, 5, key=KEY))}) for _ in range(2)]
    assert "bias_update" in stack_adapters(sets)["a"].state
    with pytest.raises(SelectionError, match="low-rank product"):
        stack_adapters(sets, rank=3)


def test_plain_lora_cannot_hold_it():
    model = {"a": adapted(eqx.nn.Linear(6, 5, key=KEY))}
    with pytest.raises(WrapperError, match="also trains bias_update; merge it instead"):
        to_lora(model)


def test_a_model_that_reads_the_bias_sees_it():
    model = adapted(eqx.nn.Linear(6, 5, key=KEY))
    assert_close(model.bias, merge_lora(model).bias, 1e-6)


def test_only_train_is_a_value():
    with pytest.raises(WrapperError, match='`bias` must be "train" or None'):
        apply_lora(eqx.nn.Linear(3, 2, key=KEY), 2, options={"bias": "all"}, key=KEY)

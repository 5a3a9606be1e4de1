"""Options of LoRA: `dropout` of the features, never silent, and `bias="train"`, from zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import OF_THE_KIND, assert_close, perturb

from jno.lora import (
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_report,
    merge_lora,
    save_adapters,
    swap_adapters,
    unwrap_lora,
)
from jno_lora_combine import stack_adapters, to_lora
from jno_lora_testing import WrapperCase, parametrize_with_checks
from jno_lora_zoo import LoRAConv, LoRALinear

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(6, 5, key=KEY)
CONV = eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY)


def dropping(layer, wrapper="lora", p=0.5):
    model = apply_lora(layer, 2, 4.0, wrapper=wrapper, options={"dropout": p}, key=KEY)
    return perturb(model)


@pytest.mark.parametrize(
    ("layer", "shape", "wrapper"),
    [(LINEAR, (6,), "rslora"), (LINEAR, (6,), "lora-fa"), (CONV, (4, 9), "lora")],
    ids=["rslora", "lora-fa", "conv"],
)
def test_only_the_low_rank_product_sees_dropped_inputs(layer, shape, wrapper):
    x = jax.random.normal(jax.random.key(1), shape)
    model = dropping(layer, wrapper)
    seen = eqx.nn.Dropout(0.5)(x, key=jax.random.key(2))
    plain = eqx.nn.inference_mode(model)
    update = plain(seen) - layer(seen)
    assert_close(model(x, key=jax.random.key(2)), layer(x) + update, 1e-5)
    assert not jnp.allclose(plain(x), model(x, key=jax.random.key(2)))
    assert_close(plain(x), merge_lora(model)(x), 1e-5)


def test_a_missing_key_is_an_error_that_names_the_layer_and_the_way_out():
    model = eqx.nn.MLP(6, 5, 4, 1, key=KEY)
    adapted_model = apply_lora(model, 2, options={"dropout": 0.1}, key=KEY)
    with pytest.raises(WrapperError, match=r"LoRALinear of a Linear \(4, 6\).*without `key=`"):
        adapted_model(jnp.ones(6))
    assert eqx.nn.inference_mode(adapted_model)(jnp.ones(6)).shape == (5,)


class Doubled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x, key=key)


def test_layers_that_never_see_the_features_refuse_rather_than_leave_dropout_out():
    model = dropping(Doubled(6, 5, key=KEY))
    with pytest.raises(WrapperError, match="an unknown `__call__`"):
        model(jnp.ones(6), key=KEY)
    with pytest.raises(WrapperError, match="`dropout` cannot be used by LoRAInNorm"):
        dropping(eqx.nn.WeightNorm(LINEAR), "LoRAInNorm")


@pytest.mark.parametrize("p", [1.0, -0.1, "half", True])
def test_only_a_probability_is_taken(p):
    with pytest.raises(WrapperError, match="`dropout` must be a probability"):
        dropping(LINEAR, p=p)


def test_dropout_is_not_saved_in_a_file_and_a_set_that_is_swapped_in_is_trained_with_it(tmp_path):
    model = {"a": dropping(LINEAR)}
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters({"a": LINEAR}, tmp_path / "a.safetensors")
    x = jnp.ones(6)
    assert_close(loaded["a"](x), eqx.nn.inference_mode(model)["a"](x), 1e-6)
    plain = apply_lora({"a": LINEAR}, 2, 4.0, key=jax.random.key(5))
    swapped = swap_adapters(model, extract_adapters(plain))
    assert swapped["a"].dropout.p == 0.5
    assert bool(jnp.array_equal(swapped["a"].lora_A, plain["a"].lora_A))


def test_a_net_keeps_it_for_each_name():
    net, keys = Net(LINEAR).freeze(), jax.random.split(KEY, 64)
    options = {"dropout": 0.5}
    for name, p in {"a": options, "b": {}, "c": {"dropout": 0.25}}.items():
        net.deactivate().lora(2, wrapper="lora", options=p).add_adapter(name)
        net.update(perturb(net.partition()[0]))

    @eqx.filter_jit
    def spread_of(model):
        return jax.vmap(lambda key: model(jnp.ones(6), key=key))(keys).std(0).max()

    def spread():
        return float(spread_of(net.module))

    spreads = {name: net.activate(name) and spread() for name in ("a", "b", "c")}
    assert spreads["a"] > 0.01 and spreads["b"] < 1e-5 and spreads["c"] > 0.01
    mask = net.trainable
    for leave in (
        net.deactivate,
        lambda: net.activate("b"),
        lambda: net.activate("a", "c"),
        lambda: net.activate("a", "b", train=["a"]),
        lambda: net.activate("c", "b", weights="train").deactivate(),
        lambda: net.activate("c").add_adapter("d", net.adapter("b")).delete_adapter("d"),
    ):
        for name in ("a", "b", "c"):
            leave()
            assert net.activate(name) and spread() == pytest.approx(spreads[name], rel=1e-3)
    assert net.module.dropout.p == 0.25 and net.trainable == mask
    with net.disabled():
        assert spread() < 1e-5
    assert net.module.dropout.p == 0.25


BIAS = {"bias": "train"}
CASES = [
    WrapperCase(
        cls,
        base=make,
        inputs=lambda key, shape=shape: (jax.random.normal(key, shape),),
        options=BIAS,
        parameters=parameters,
        checks=OF_THE_KIND,
    )
    for cls, make, shape, parameters in (
        (LoRALinear, lambda key: eqx.nn.Linear(6, 5, key=key), (6,), 2 * 11 + 5),
        (LoRAConv, lambda key: eqx.nn.Conv1d(4, 6, 3, groups=2, key=key), (4, 5), 2 * 12 + 6),
    )
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


def with_bias(layer):
    return perturb(apply_lora(layer, 2, 4.0, options=BIAS, key=KEY))


def test_the_merged_bias_is_the_sum_and_unwrapping_takes_it_out():
    layer = eqx.nn.Linear(6, 5, key=KEY)
    model = with_bias(layer)
    assert_close(merge_lora(model).bias, layer.bias + model.bias_update, 1e-6)
    assert_close(model.bias, merge_lora(model).bias, 1e-6)  # a model that reads the bias sees it
    assert bool(jnp.any(model.bias_update != 0))
    assert model.low_rank_update() is None  # more than a product
    assert bool(eqx.tree_equal(unwrap_lora(model), layer))
    (row,) = lora_report(model)
    assert row.trainable == 27


def test_a_layer_without_a_bias_trains_none():
    model = with_bias(eqx.nn.Linear(6, 5, use_bias=False, key=KEY))
    assert model.bias_update is None
    assert merge_lora(model).bias is None


def test_it_is_not_lost_where_only_products_are_combined():
    model = {"a": with_bias(eqx.nn.Linear(6, 5, key=KEY))}
    sets = [extract_adapters(model)] * 2
    assert "bias_update" in stack_adapters(sets)["a"].state
    with pytest.raises(SelectionError, match="low-rank product"):
        stack_adapters(sets, rank=3)
    with pytest.raises(WrapperError, match="also trains bias_update; merge it instead"):
        to_lora(model)


def test_only_train_is_a_value():
    with pytest.raises(WrapperError, match='`bias` must be "train" or None'):
        apply_lora(eqx.nn.Linear(3, 2, key=KEY), 2, options={"bias": "all"}, key=KEY)

"""Dropout on the input of the low-rank product: on in training, off in inference, never silent."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import assert_close, perturb

from jno.lora import (
    Net,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    merge_lora,
    save_adapters,
    swap_adapters,
)

KEY = jax.random.key(0)
LAYERS = {
    "linear": (eqx.nn.Linear(6, 5, key=KEY), (6,)),
    "conv": (eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY), (4, 9)),
}


def adapted(layer, wrapper="lora", p=0.5):
    model = apply_lora(layer, 2, 4.0, wrapper=wrapper, options={"dropout": p}, key=KEY)
    return perturb(model)


@pytest.mark.parametrize("wrapper", ["lora", "rslora", "lora-fa"])
@pytest.mark.parametrize("name", LAYERS)
def test_only_the_low_rank_product_sees_dropped_inputs(name, wrapper):
    layer, shape = LAYERS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    model = adapted(layer, wrapper)
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


def test_a_layer_with_a_call_of_its_own_refuses_rather_than_leave_dropout_out():
    model = adapted(Doubled(6, 5, key=KEY))
    with pytest.raises(WrapperError, match="an unknown `__call__`"):
        model(jnp.ones(6), key=KEY)


def test_a_kind_that_never_sees_the_features_refuses_at_once():
    norm = eqx.nn.WeightNorm(eqx.nn.Linear(6, 5, key=KEY))
    with pytest.raises(WrapperError, match="`dropout` cannot be used by LoRAInNorm"):
        apply_lora(norm, 2, wrapper="LoRAInNorm", options={"dropout": 0.1}, key=KEY)


@pytest.mark.parametrize("p", [1.0, -0.1, "half", True])
def test_only_a_probability_is_taken(p):
    with pytest.raises(WrapperError, match="`dropout` must be a probability"):
        adapted(LAYERS["linear"][0], p=p)


def test_dropout_is_not_saved_in_a_file(tmp_path):
    layer, shape = LAYERS["linear"]
    model = adapted({"a": layer})
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters({"a": layer}, tmp_path / "a.safetensors")
    x = jnp.ones(shape)
    assert_close(loaded["a"](x), eqx.nn.inference_mode(model)["a"](x), 1e-6)


def test_a_set_that_is_swapped_in_is_trained_with_it():
    layer, _ = LAYERS["linear"]
    model = {"a": adapted(layer)}
    plain = apply_lora({"a": layer}, 2, 4.0, key=jax.random.key(5))
    swapped = swap_adapters(model, extract_adapters(plain))
    assert swapped["a"].dropout.p == 0.5
    assert bool(jnp.array_equal(swapped["a"].lora_A, plain["a"].lora_A))


@pytest.mark.parametrize("wrapper", ["lora", "rslora", "lora-fa"])
def test_a_net_keeps_it_for_each_name(wrapper):
    layer, shape = LAYERS["linear"]
    net, keys = Net(layer).freeze(), jax.random.split(KEY, 64)
    options = {"dropout": 0.5}
    for name, p in {"a": options, "b": {}, "c": {"dropout": 0.25}}.items():
        net.deactivate().lora(2, wrapper=wrapper, options=p).add_adapter(name)
        net.update(perturb(net.partition()[0]))

    def spread():
        model = net.module
        return float(jax.vmap(lambda key: model(jnp.ones(shape), key=key))(keys).std(0).max())

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


def test_a_scalar_layer_takes_a_number():
    layer = eqx.nn.Linear("scalar", 3, key=KEY)
    model = apply_lora(layer, 1, options={"dropout": 0.5}, key=KEY)
    assert model(1.0, key=KEY).shape == (3,)


def test_a_stack_and_a_net_train_with_it():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))(jax.random.split(KEY, 3))
    net = Net(stack).lora(rank=2, options={"dropout": 0.3})
    trainable, frozen = eqx.partition(perturb(net.module), net.trainable)

    @eqx.filter_jit
    def loss(trainable, x, key):
        arrays, static = eqx.partition(eqx.combine(trainable, frozen), eqx.is_array)

        def body(x, layer_and_key):
            layer, key = layer_and_key
            return eqx.combine(layer, static)(x, key=key), None

        y, _ = jax.lax.scan(body, x, (arrays, jax.random.split(key, 3)))
        return jnp.sum(y)

    grads = eqx.filter_grad(loss)(trainable, jnp.ones(6), KEY)
    assert all(bool(jnp.any(g != 0)) for g in (grads.lora_A, grads.lora_B))

"""A `Net` through training: partition, update, merge, unwrap; nothing is dropped silently."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError, save_adapters

from .toys import ToyLinear, ToyScale, adapters_in, array_paths, same, selected


@pytest.fixture
def net(model):
    return Net(model).freeze().lora(1, wrapper=ToyScale)


def moved(tree):
    return jax.tree.map(lambda x: x + 1, tree)


def test_partition_splits_by_the_state_and_an_update_takes_the_trained_values_alone(net, model):
    given, before = jax.tree.map(lambda x: x, model), net.module
    trainable, frozen = net.partition()
    assert array_paths(trainable) == selected(net.trainable)
    assert same(eqx.combine(trainable, frozen), before)
    assert net.update(trainable) is net and same(net.module, before)
    step = eqx.filter_jit(moved)
    net.update(step(trainable)).update(step(net.partition()[0]))
    assert jnp.array_equal(net.module.head.gain, jnp.full(2, 3.0))
    assert same(net.partition()[1], frozen)
    assert same(model, given)


def test_complex_arrays_that_train_are_warned_of_once():
    net = Net({"real": jnp.ones(2), "spectral": {"w": jnp.ones((2, 3), jnp.complex64)}})
    with pytest.warns(JnoLoraWarning, match=r"spectral/w.*(?s:.)*jnp\.conj"):
        trainable, frozen = net.partition()
    assert same(eqx.combine(trainable, frozen), net.module)
    net.partition()  # another warning would be an error
    Net(net.module).freeze().partition()


def of_head(value):
    return lambda t: eqx.tree_at(lambda m: m.head.gain, t, value)


def with_temperature(t):
    return eqx.tree_at(lambda m: m.temperature, t, jnp.ones(()), is_leaf=lambda x: x is None)


BAD_UPDATES = {
    "missing": (of_head(None), ["head/gain: trained here, missing in the update"]),
    "unexpected": (with_temperature, ["temperature: not a trainable leaf of this net"]),
    "dtype": (
        of_head(jnp.ones(2, jnp.float16)),
        ["head/gain: expected float32[2], got float16[2]"],
    ),
    "every shape": (
        lambda t: jax.tree.map(lambda x: jnp.ones(7), t),
        ["encoder/0/gain", "encoder/1/gain", "head/gain: expected float32[2], got float32[7]"],
    ),
}


@pytest.mark.parametrize(("spoil", "messages"), BAD_UPDATES.values(), ids=BAD_UPDATES.keys())
def test_a_bad_update_is_an_error_naming_each_leaf_and_changes_nothing(net, spoil, messages):
    module = net.module
    with pytest.raises(SelectionError) as caught:
        net.update(spoil(net.partition()[0]))
    for message in (*messages, "net.partition()"):
        assert message in str(caught.value)
    assert net.module is module


def test_an_update_of_other_static_fields_or_from_before_a_control_is_an_error(model, net):
    before = net.partition()[0]
    other = Net(model).freeze().lora(1, alpha=2.0, wrapper=ToyScale)
    with pytest.raises(SelectionError, match="other classes or static fields"):
        net.update(other.partition()[0])
    net.unfreeze()
    with pytest.raises(SelectionError, match="temperature: trained here, missing in the update"):
        net.update(before)


def test_merge_keeps_what_was_trained_and_the_layers_can_be_adapted_anew(net, model):
    net.update(moved(net.partition()[0]))
    output = net(1)
    assert net.merge() is net
    merged = net.module
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    assert jnp.allclose(net(1), output, rtol=1e-6)
    assert not same(merged, model)
    net.lora(2, wrapper=ToyLinear)
    assert {type(a) for a in adapters_in(net.module).values()} == {ToyLinear}
    assert same(net.module.head.base, merged.head)
    layers, fields = ("encoder/0", "encoder/1", "head"), ("lora_A", "lora_B")
    assert selected(net.trainable) == {f"{path}/{f}" for path in layers for f in fields}


@pytest.mark.parametrize("leave", ["merge", "unwrap"])
def test_afterwards_what_was_frozen_stays_frozen_and_what_trained_trains(model, leave):
    net = Net(model).lora(1, wrapper=ToyScale, target="head")
    net.mask("temperature").freeze().mask("head/base/weight").unfreeze()
    getattr(net, leave)()
    assert selected(net.trainable) == array_paths(model) - {"head/bias", "temperature"}
    assert jax.tree.structure(net.trainable) == jax.tree.structure(model)
    before = selected(net.trainable)
    getattr(net, leave)()  # a model without adapters stays as it is
    assert same(net.module, model) and selected(net.trainable) == before
    assert selected(net.unfreeze().trainable) == array_paths(model)


def test_adapting_further_layers_keeps_what_was_trained(model):
    net = Net(model).lora(1, wrapper=ToyScale, target="encoder")
    net.update(moved(net.partition()[0]))
    trained = net.module
    net.lora(1, wrapper=ToyScale, target="head")
    assert same(net.module.encoder, trained.encoder)
    assert same(net.module.head.base, trained.head)
    assert same(net.module.embedding, trained.embedding)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way_and_is_never_in_a_disabled_block(net, copied):
    trainable, _ = net.partition()
    before = net.module
    with net.disabled():
        other = copied(net)
        assert other.module is before
        other.update(moved(trainable)).unfreeze()
    assert net.module is before
    assert jnp.array_equal(other.module.head.gain, jnp.full(2, 2.0))
    assert sum(jax.tree.leaves(net.trainable)) < sum(jax.tree.leaves(other.trainable))
    assert same(other.unwrap().module, net.unwrap().module)


def test_a_net_from_outside_keeps_no_tracers_and_a_net_from_inside_may(net, model):
    trainable, _ = net.partition()
    before = net.module

    @eqx.filter_jit
    def step(trainable):
        net.update(trainable)

    with pytest.raises(SelectionError, match=r"inside of a JAX transformation.*eqx\.combine"):
        step(trainable)
    assert net.module is before

    @eqx.filter_jit
    def call(trainable):
        return Net(model).freeze().lora(1, wrapper=ToyScale).update(trainable)(0)

    assert jnp.allclose(call(trainable), model(0), rtol=1e-6)


def test_saving_says_once_that_a_partition_never_came_back(net, tmp_path):
    file = tmp_path / "adapters.safetensors"
    net.save_adapters(file)  # as they started: nothing was given away
    trainable, _ = net.partition()
    with pytest.warns(JnoLoraWarning, match=r"net\.update\(\.\.\.\) was not called since"):
        save_adapters(net, file)
    net.save_adapters(file)
    net.update(moved(trainable))
    net.partition()  # to read
    net.save_adapters(file)
    copy.copy(net).save_adapters(file)
    net.merge().lora(1, wrapper=ToyScale).partition()  # other adapters
    with net.disabled(), pytest.warns(JnoLoraWarning, match="was not called since"):
        net.save_adapters(file)
    net.save_adapters(file)


def test_merging_says_that_a_partition_never_came_back(net):
    for trained in (net, Net(net.module)):
        trainable, _ = trained.partition()
        with pytest.warns(JnoLoraWarning, match=r"net\.update\(trainable\) before net\.merge\(\)"):
            copy.copy(trained).merge()
        trained.update(moved(trainable)).merge()


def test_only_what_trains_moves_under_gradient_descent(net, model):
    trainable, frozen = net.partition()

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(trainable):
        return jnp.sum(eqx.combine(trainable, frozen)(1) ** 2)

    found = gradients(trainable)
    assert array_paths(found) == selected(net.trainable)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found))
    net.update(jax.tree.map(lambda x, g: x - 0.1 * g, trainable, found))
    assert same(net.unwrap().module, model)

"""The controls of `Net`: what each combination wraps, and what trains afterwards."""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError

from .toys import (
    MODEL_LINEARS,
    Model,
    ToyConv,
    ToyLinear,
    ToyScale,
    adapters_in,
    array_paths,
    same,
    selected,
)

LINEARS = set(MODEL_LINEARS)


def all_false(model):
    return jax.tree.map(lambda _: False, model)


def below(paths, layers):
    return {p for p in paths if any(p.startswith(f"{layer}/") for layer in layers)}


# --- the table of controls

MASKS = {
    "no mask": (None, LINEARS),
    "tree": (lambda m: eqx.tree_at(lambda t: t.encoder[1], all_false(m), True), {"encoder/1"}),
    "leaf": (lambda m: eqx.tree_at(lambda t: t.head.bias, all_false(m), True), {"head"}),
    "regex": (lambda m: "encoder", {"encoder/0", "encoder/1"}),
}
TARGETS = {"no target": (None, LINEARS), "target": ("1|head", {"encoder/1", "head"})}
COMBINATIONS = list(itertools.product(MASKS, TARGETS, [False, True], ["chain", "statements"]))


@pytest.mark.parametrize(("mask", "target", "frozen", "form"), COMBINATIONS)
def test_lora_wraps_the_layers_and_only_adapters_train(model, mask, target, frozen, form):
    make_mask, by_mask = MASKS[mask]
    regex, by_target = TARGETS[target]
    expected = by_mask & by_target
    net = Net(model)

    def controls():
        if frozen:
            yield net.freeze
        if make_mask is not None:
            yield lambda: net.mask(make_mask(model))
        yield lambda: net.lora(1, wrapper=ToyScale, target=regex)

    if form == "statements":
        for control in controls():
            assert control() is net
    else:
        chain = net.freeze() if frozen else net
        chain = chain.mask(make_mask(model)) if make_mask is not None else chain
        assert chain.lora(1, wrapper=ToyScale, target=regex) is net

    assert set(adapters_in(net.module)) == expected
    gains = {f"{path}/gain" for path in expected}
    outside = array_paths(model) - below(array_paths(model), expected)
    assert selected(net.trainable) == (gains if frozen else gains | outside)


def test_a_mask_and_a_target_without_a_layer_in_common_warn_and_wrap_nothing(model):
    net = Net(model)
    with pytest.warns(JnoLoraWarning, match="(?s)mask selects none.*head"):
        net.mask("encoder").lora(1, wrapper=ToyScale, target="head")
    assert net.module is model
    assert selected(net.trainable) == array_paths(model)


def test_a_fresh_net_trains_everything(model):
    assert selected(Net(model).trainable) == array_paths(model)


def test_freeze_trains_nothing(model):
    assert selected(Net(model).lora(1, wrapper=ToyScale).freeze().trainable) == set()


@pytest.mark.parametrize("mask", ["encoder", "bias", "head/weight|temp"])
def test_a_masked_freeze_trains_all_but_the_mask(model, mask):
    everything = array_paths(model)
    frozen = {p for p in everything if re.search(mask, p)}
    assert frozen
    assert selected(Net(model).mask(mask).freeze().trainable) == everything - frozen


def test_a_masked_freeze_leaves_the_rest_as_it_was(model):
    net = Net(model).mask("encoder").freeze().mask("head").freeze()
    assert selected(net.trainable) == {"embedding/weight", "temperature"}


def test_unfreeze_trains_everything_but_wrapped_bases(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale, target="head").unfreeze()
    expected = array_paths(model) - below(array_paths(model), {"head"}) | {"head/gain"}
    assert selected(net.trainable) == expected


def test_a_masked_unfreeze_adds_the_mask(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale, target="head")
    assert selected(net.mask("encoder/0").unfreeze().trainable) == {
        "head/gain",
        "encoder/0/weight",
        "encoder/0/bias",
    }


def test_a_masked_unfreeze_may_add_a_wrapped_base_but_no_constant_of_an_adapter(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale, target="head").freeze()
    net.mask("head").unfreeze()
    assert selected(net.trainable) == {"head/gain", "head/base/weight", "head/base/bias"}


def test_a_masked_unfreeze_trains_floating_arrays_only():
    net = Net({"a": jax.numpy.arange(3), "f": jax.nn.relu, "x": jax.numpy.ones(1)})
    assert selected(net.freeze().mask(True).unfreeze().trainable) == {"x"}


def test_controls_go_on_from_what_earlier_ones_left(model):
    net = Net(model)
    net.freeze().lora(1, wrapper=ToyScale, target="encoder/0")
    net.mask("temperature").unfreeze()
    net.lora(1, wrapper=ToyScale, target="head")
    assert selected(net.trainable) == {"encoder/0/gain", "head/gain", "temperature"}
    net.mask("encoder/0").freeze()
    assert selected(net.trainable) == {"head/gain", "temperature"}


def test_new_adapters_leave_frozen_adapters_frozen(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale, target="encoder/0").freeze()
    net.lora(1, wrapper=ToyScale, target="head")
    assert selected(net.trainable) == {"head/gain"}


# --- the mask is used up by the next control


@pytest.mark.parametrize(
    "control",
    [
        lambda net: net.lora(1, wrapper=ToyScale),
        lambda net: net.freeze(),
        lambda net: net.unfreeze(),
        lambda net: net.plan(1, wrapper=ToyScale),
    ],
    ids=["lora", "freeze", "unfreeze", "plan"],
)
def test_a_mask_is_used_up_by_the_next_control(model, control):
    net = Net(model).mask("encoder/0")
    control(net)
    assert selected(net.freeze().trainable) == set()


def test_a_mask_that_selects_nothing_names_the_nearest_paths(model):
    with pytest.warns(JnoLoraWarning, match=r"(?s)selects nothing.*'haed'.*head/weight"):
        Net(model).mask("haed").freeze()


@pytest.mark.parametrize("key", [0, jnp.zeros(3)])
def test_a_key_of_none_is_refused_at_once(model, unchecked, key):
    with pytest.raises(SelectionError, match=r"must be one random key"):
        Net(model, key=key)


def test_a_mask_that_selects_nothing_is_used_up_too(model):
    net = Net(model)
    with pytest.warns(JnoLoraWarning, match="mask selects none"):
        net.mask("embedding").lora(1, wrapper=ToyScale)
    net.lora(1, wrapper=ToyScale)
    assert set(adapters_in(net.module)) == LINEARS


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target": "no such layer"}, SelectionError),
        ({"wrapper": ToyConv}, SelectionError),
        ({"rank": 0}, SelectionError),
        ({"options": {"no such option": 1}}, SelectionError),
    ],
)
def test_a_control_that_raises_changes_nothing_and_keeps_the_mask(model, arguments, error):
    net = Net(model).mask("encoder/0")
    module, trainable = net.module, net.trainable
    with pytest.raises(error):
        net.lora(**{"rank": 1, "wrapper": ToyScale, **arguments})
    assert net.module is module and net.trainable is trainable
    net.lora(1, wrapper=ToyScale)
    assert set(adapters_in(net.module)) == {"encoder/0"}


def test_a_second_mask_replaces_the_first_and_a_bad_one_does_not(model):
    net = Net(model).mask("encoder").mask("head")
    with pytest.raises(SelectionError):
        net.mask("(")
    net.lora(1, wrapper=ToyScale)
    assert set(adapters_in(net.module)) == {"head"}


# --- plan, rank, key


def test_plan_says_what_lora_will_do(model):
    net = Net(model)
    plan = net.mask("encoder").plan(1, wrapper=ToyScale, target="1|head")
    assert [row.path for row in plan.wrapped] == ["encoder/1"]
    assert net.module is model


@pytest.mark.parametrize("call", ["lora", "plan"])
def test_rank_zero_is_an_error_that_says_what_to_do(model, call):
    with pytest.raises(SelectionError, match=r"at least 1, but is 0"):
        getattr(Net(model), call)(0, wrapper=ToyScale)
    with pytest.raises(SelectionError, match="must be an integer of at least 1, but is -2"):
        getattr(Net(model), call)(-2, wrapper=ToyScale)


def test_the_default_rank_is_four_and_alpha_is_the_rank(getkey):
    net = Net(Model(getkey(), size=6)).lora(wrapper=ToyLinear, target="encoder/0")
    adapter = net.module.encoder[0]
    assert (adapter.rank, adapter.alpha) == (4, 4.0)


def test_alpha_is_the_rank_of_a_spec_unless_the_spec_or_the_call_gives_it(model):
    specs = [{"target": "encoder/0", "rank": 2}, {"target": "encoder/1", "rank": 2, "alpha": 8}]
    by_default = Net(model).lora(1, wrapper=ToyLinear, specs=specs).module.encoder
    assert [layer.alpha for layer in by_default] == [2.0, 8.0]
    by_call = Net(model).lora(1, 5.0, wrapper=ToyLinear, specs=specs).module.encoder
    assert [layer.alpha for layer in by_call] == [5.0, 8.0]


def test_without_a_key_every_net_starts_from_seed_zero(model):
    one = Net(model).lora(1, wrapper=ToyLinear).module
    two = Net(model).lora(1, wrapper=ToyLinear).module
    zero = Net(model, key=jax.random.key(0)).lora(1, wrapper=ToyLinear).module
    assert same(one, two) and same(one, zero)


def test_a_key_of_the_net_and_a_key_of_the_call(model):
    of_net = Net(model, key=jax.random.key(3)).lora(1, wrapper=ToyLinear).module
    of_call = Net(model).lora(1, wrapper=ToyLinear, key=jax.random.PRNGKey(3)).module
    default = Net(model).lora(1, wrapper=ToyLinear).module
    assert same(of_net, of_call)
    assert not same(of_net, default)


def test_specs_work_as_in_the_functional_form(model):
    specs = [{"target": "head", "wrapper": ToyLinear, "rank": 2}, {"wrapper": ToyScale}]
    net = Net(model).freeze().lora(1, specs=specs)
    assert type(net.module.head) is ToyLinear and net.module.head.rank == 2
    assert selected(net.trainable) == {
        "encoder/0/gain",
        "encoder/1/gain",
        "head/lora_A",
        "head/lora_B",
    }


# --- models of every form


def test_a_dict_of_layers_is_a_model_but_cannot_be_called(getkey):
    net = Net({"a": eqx.nn.Linear(2, 2, key=getkey()), "b": [eqx.nn.Linear(2, 2, key=getkey())]})
    net.freeze().mask({"a": False, "b": True}).lora(1, wrapper=ToyScale)
    assert selected(net.trainable) == {"b/0/gain"}
    with pytest.raises(SelectionError, match="a dict, which cannot be called"):
        net(1)


def test_a_model_that_is_one_layer(getkey):
    net = Net(eqx.nn.Linear(2, 2, key=getkey())).lora(1, wrapper=ToyScale)
    assert selected(net.trainable) == {"gain"}
    assert selected(net.mask("gain").freeze().trainable) == set()
    assert not adapters_in(net.merge().module)


def test_a_model_that_holds_adapters_already(model):
    adapted = Net(model).lora(1, wrapper=ToyScale, target="head").module
    net = Net(adapted)
    assert "head/gain" in selected(net.trainable)
    assert not below(selected(net.trainable), {"head/base"})


def test_a_target_beside_layers_that_are_all_adapted_says_that_they_are(model):
    net = Net(model).lora(1, wrapper=ToyScale)
    with pytest.raises(SelectionError, match="encoder/0: Linear, already adapted by ToyScale"):
        net.lora(1, wrapper=ToyScale, target="nowhere")


def test_calling_the_net_calls_the_model(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    assert jax.numpy.allclose(net(2), model(2), rtol=1e-6)


# --- repr and summary


def test_the_repr_says_how_much_is_adapted_and_trains(model):
    net = Net(model)
    everything = 5 * 3 + 2 * (9 + 3) + (6 + 2) + 1
    assert repr(net) == (
        f"Net(Model, 0 adapted layers, {everything} of {everything} parameters train)"
    )
    net.freeze().lora(1, wrapper=ToyScale)
    assert repr(net) == (
        f"Net(Model, 3 adapted layers, {3 + 3 + 2} of {everything + 8} parameters train)"
    )


def test_the_summary_counts_what_the_state_of_the_net_says(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale)
    net.mask("temperature").unfreeze()
    report = net.summary()
    assert [row.path for row in report] == list(MODEL_LINEARS)
    assert report.trainable == 8 + 1
    assert "9 of 56 parameters train" in str(report)
    net = Net(model).freeze().lora(1, wrapper=ToyScale)
    net.unfreeze().mask("head").freeze()
    net.mask("encoder/0/base").unfreeze()
    counts = {row.path: row.trainable for row in net.summary()}
    assert counts == {"encoder/0": 3 + 9 + 3, "encoder/1": 3, "head": 0}

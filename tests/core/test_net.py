"""The controls of `Net`: what each combination wraps, and what trains afterwards."""

import functools
import inspect
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import jno.lora
from jno.lora import AdapterSet, JnoLoraWarning, Net, SelectionError, extract_adapters

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


def below(paths, layers):
    return {p for p in paths if any(p.startswith(f"{layer}/") for layer in layers)}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("mask", "expected"), [(None, {"encoder/1", "head"}), ("encoder", {"encoder/1"})]
)
def test_lora_wraps_the_layers_and_only_adapters_train(model, mask, expected, frozen):
    net = Net(model)
    chain = net.freeze() if frozen else net
    chain = chain if mask is None else chain.mask(mask)
    assert chain.lora(1, wrapper=ToyScale, target="1|head") is net
    assert set(adapters_in(net.module)) == expected
    gains = {f"{path}/gain" for path in expected}
    outside = array_paths(model) - below(array_paths(model), expected)
    assert selected(net.trainable) == (gains if frozen else gains | outside)


@pytest.mark.parametrize("mask", [None, "encoder", "bias", "head/weight|temp"])
def test_freeze_stops_the_mask_or_everything(model, mask):
    everything = array_paths(model)
    assert selected(Net(model).trainable) == everything
    net = Net(model) if mask is None else Net(model).mask(mask)
    frozen = {p for p in everything if re.search(mask or "", p)}
    assert selected(net.freeze().trainable) == everything - frozen < everything
    net.mask("embedding").freeze()  # a second control goes on from the first
    assert selected(net.trainable) == everything - frozen - {"embedding/weight"}


def test_unfreeze_trains_everything_but_wrapped_bases_and_a_mask_may_add_these(model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale, target="head")
    assert selected(net.mask("encoder/0").unfreeze().trainable) == {
        *("head/gain", "encoder/0/weight", "encoder/0/bias"),
    }
    expected = array_paths(model) - below(array_paths(model), {"head"}) | {"head/gain"}
    assert selected(net.unfreeze().trainable) == expected
    net.freeze().mask("head").unfreeze()  # but no constant of the adapter
    assert selected(net.trainable) == {"head/gain", "head/base/weight", "head/base/bias"}
    net = Net({"a": jnp.arange(3), "f": jax.nn.relu, "x": jnp.ones(1)})
    assert selected(net.freeze().mask(True).unfreeze().trainable) == {"x"}


GAINS = {f"{path}/gain" for path in MODEL_LINEARS}


@pytest.mark.parametrize(
    "earlier",
    [
        lambda net: net,  # all arrays outside of adapted layers train
        lambda net: net.freeze(),
        lambda net: net.mask("head").unfreeze(),
        lambda net: net.freeze().mask("encoder/0/base|temperature").unfreeze(),
        lambda net: Net(net.module).mask("encoder").freeze(),
    ],
)
def test_train_adapters_trains_them_alone_whatever_trained_before(model, earlier):
    net = earlier(Net(model).lora(1, wrapper=ToyScale))
    assert net.train_adapters() is net and selected(net.trainable) == GAINS
    assert selected(net.mask("encoder").train_adapters().trainable) == GAINS - {"head/gain"}
    with pytest.warns(JnoLoraWarning, match=r"(?s)selects nothing.*/gain"):
        net.mask("embedding|base").train_adapters()
    assert selected(net.trainable) == set()
    net.mask("temperature").unfreeze()  # the mask was used up
    assert selected(net.train_adapters().trainable) == GAINS


def test_train_adapters_needs_adapters_in_the_model(model):
    adapters = extract_adapters(Net(model).lora(1, wrapper=ToyScale).module)
    net = Net(model).add_adapter("a", adapters).mask("head")
    with pytest.raises(SelectionError, match=r"no adapters.*net\.lora.*net\.activate"):
        net.train_adapters()
    assert selected(net.freeze().trainable) == array_paths(model) - {"head/weight", "head/bias"}
    net.activate("a")
    with net.disabled(), pytest.raises(SelectionError, match=r"train_adapters.* block"):
        net.train_adapters()


def test_a_partition_without_a_trained_adapter_warns(model):
    net = Net(model).lora(1, wrapper=ToyScale)
    net.partition()
    for nothing_of_them in (net.freeze(), net.mask("temperature").unfreeze()):
        with pytest.warns(JnoLoraWarning, match=r"No array of the adapters.*train_adapters\(\)"):
            nothing_of_them.partition()
    net.mask("head/gain").unfreeze().partition()  # another warning would be an error
    Net(model).freeze().partition()  # without adapters


def test_controls_go_on_from_what_earlier_ones_left(model):
    net = Net(model)
    net.freeze().lora(1, wrapper=ToyScale, target="encoder/0")
    net.mask("temperature").unfreeze()
    net.lora(1, wrapper=ToyScale, target="head")
    assert selected(net.trainable) == {"encoder/0/gain", "head/gain", "temperature"}
    net.mask("encoder/0").freeze()
    net.lora(1, wrapper=ToyScale, target="encoder/1")
    assert selected(net.trainable) == {"head/gain", "temperature", "encoder/1/gain"}
    assert selected(Net(net.module).trainable) == {  # adapters of the model stay
        *("encoder/0/gain", "encoder/1/gain", "head/gain", "embedding/weight", "temperature"),
    }


@pytest.mark.parametrize("control", ["lora", "freeze", "unfreeze", "plan"])
def test_a_mask_is_used_up_by_the_next_control(model, control):
    net = Net(model).mask("encoder/0")
    result = getattr(net, control)(**{"wrapper": ToyScale} if control in ("lora", "plan") else {})
    if control == "plan":
        assert [row.path for row in result.wrapped] == ["encoder/0"] and net.module is model
    assert selected(net.freeze().trainable) == set()


def test_a_mask_that_selects_nothing_warns_names_paths_and_is_used_up(model):
    net = Net(model)
    with pytest.warns(JnoLoraWarning, match=r"(?s)selects nothing.*head/weight"):
        net.mask("haed").freeze()
    with pytest.warns(JnoLoraWarning, match="(?s)mask selects none.*head"):
        net.mask("encoder").lora(1, wrapper=ToyScale, target="head")
    assert net.module is model and selected(net.trainable) == array_paths(model)
    assert set(adapters_in(net.lora(1, wrapper=ToyScale).module)) == LINEARS


def test_a_control_that_raises_changes_nothing_and_keeps_the_mask(model):
    net = Net(model).mask("head").mask("encoder/0")  # the second replaces the first
    module, trainable = net.module, net.trainable
    for wrong in (
        {"target": "no such layer"},
        {"wrapper": ToyConv},
        {"rank": 0},
        {"options": {"no such option": 1}},
    ):
        with pytest.raises(SelectionError):
            net.lora(**{"rank": 1, "wrapper": ToyScale, **wrong})
    with pytest.raises(SelectionError):
        net.mask("(")
    assert net.module is module and net.trainable is trainable
    net.lora(1, wrapper=ToyScale)
    assert set(adapters_in(net.module)) == {"encoder/0"}


def test_the_default_rank_is_four_and_alpha_is_the_rank_unless_given(getkey):
    specs = [{"target": "encoder/0", "rank": 2}, {"target": "encoder/1", "rank": 2, "alpha": 8}]

    def scales(*call, specs=None):
        layers = Net(Model(getkey(), size=6)).lora(*call, wrapper=ToyLinear, specs=specs).module
        return [(layer.rank, layer.alpha) for layer in layers.encoder]

    assert scales() == [(4, 4.0)] * 2
    assert scales(1, specs=specs) == [(2, 2.0), (2, 8.0)]
    assert scales(1, 5.0, specs=specs) == [(2, 5.0), (2, 8.0)]


def test_a_key_of_the_net_or_of_the_call_decides_and_the_default_is_seed_zero(model, unchecked):
    def started(call_key=None, **net_key):
        return Net(model, **net_key).lora(1, wrapper=ToyLinear, key=call_key).module

    assert same(started(), started(key=jax.random.key(0)))
    assert same(started(key=jax.random.key(3)), started(jax.random.PRNGKey(3)))
    assert not same(started(key=jax.random.key(3)), started())
    with pytest.raises(SelectionError, match=r"must be one random key"):
        Net(model, key=0)


def test_a_layer_is_a_model_and_so_is_a_dict_of_layers_which_cannot_be_called(getkey):
    layer = eqx.nn.Linear(2, 2, key=getkey())
    net = Net(layer).lora(1, wrapper=ToyScale)
    assert selected(net.trainable) == {"gain"}
    assert selected(net.mask("gain").freeze().trainable) == set()
    assert not adapters_in(net.merge().module)
    net = Net({"a": layer, "b": [layer]})
    net.freeze().mask({"a": False, "b": True}).lora(1, wrapper=ToyScale)
    assert selected(net.trainable) == {"b/0/gain"}
    with pytest.raises(SelectionError, match="a dict, which cannot be called"):
        net(1)


def test_the_repr_and_the_summary_count_what_trains_in_the_net(model):
    net = Net(model)
    everything = 5 * 3 + 2 * (9 + 3) + (6 + 2) + 1
    trains = f"{everything} of {everything} parameters train"
    assert repr(net) == f"Net(Model, 0 adapted layers, {trains} (100.00 %))"
    net.freeze().lora(1, wrapper=ToyScale)
    trains = f"{3 + 3 + 2} of {everything + 8} parameters train"
    assert repr(net) == f"Net(Model, 3 adapted layers, {trains} (14.29 %))"
    net.mask("temperature").unfreeze()
    report = net.summary()
    assert [row.path for row in report] == list(MODEL_LINEARS)
    assert report.trainable == 8 + 1 and "9 of 56 parameters train" in str(report)
    net.mask("head").freeze().mask("encoder/0/base").unfreeze()
    counts = {row.path: row.trainable for row in net.summary()}
    assert counts == {"encoder/0": 3 + 9 + 3, "encoder/1": 3, "head": 0}


def test_sets_outside_the_model_are_told_with_the_call_that_puts_them_in(model):
    adapters = extract_adapters(Net(model).lora(1, wrapper=ToyScale).module)
    net = Net(model).add_adapter("a", adapters).add_adapter("b", adapters)
    for text in (repr(net), str(net.summary())):
        assert "0 adapted layers, inactive sets: 2 (net.activate)" in text
    assert "inactive sets: 1 " in repr(net.activate("a"))
    with net.disabled():
        assert "inactive sets: 1 " in repr(net)
    assert "inactive" not in repr(net.delete_adapter("b"))


# --- functions of models refuse a net, and so do those of JAX and Equinox

TAKE_A_NET = {"load_adapters", "save_adapters"}
# Further arguments of functions of a model.
ARGUMENTS = {
    "apply_lora": {"key": jax.random.key(0)},
    "swap_adapters": {"adapters": AdapterSet({})},
}


def functions_of_a_model():
    public = {name: getattr(jno.lora, name) for name in jno.lora.__all__ if name not in TAKE_A_NET}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    return [n for n, value in functions.items() if "model" in inspect.signature(value).parameters]


def test_a_net_and_a_set_of_adapters_are_refused_with_what_to_give(model, registry):
    net = Net(model).lora(1, wrapper=ToyLinear)
    adapters, names = extract_adapters(net.module), functions_of_a_model()
    assert len(names) > 11
    for name in [*names, "Net"]:
        call = functools.partial(getattr(jno.lora, name), **ARGUMENTS.get(name, {}))
        with pytest.raises(SelectionError, match=rf"^{name} takes a model.*Give net\.module$"):
            call(net)
        message = rf"^{name} takes a model.*AdapterSet.*Give swap_adapters\(model, adapters\)$"
        with pytest.raises(SelectionError, match=message):
            call(adapters)


IS_A_HANDLE = r"is a handle.*not a pytree.*net\.module"
# JAX keeps the compiled function by its hash, with the weights of the first call.
CHANGES = r"A Net changes.*jax\.jit\(net\).*net\.module, x\)"
OTHERS = {
    "filter_jit of it": (lambda net: eqx.filter_jit(net)(1), IS_A_HANDLE),
    "tree_at": (lambda net: eqx.tree_at(lambda n: n.module, net, None), IS_A_HANDLE),
    "a net in a model": (lambda net: Net([net]), IS_A_HANDLE),
    "tree.map": (lambda net: jax.tree.map(lambda x: x, net), IS_A_HANDLE),
    "jit of it": (lambda net: jax.jit(net)(0), CHANGES),
    "jit with it": (lambda net: jax.jit(lambda n: n(0), static_argnums=0)(net), CHANGES),
}


@pytest.mark.parametrize(("call", "message"), OTHERS.values(), ids=OTHERS)
def test_functions_of_pytrees_and_compiled_functions_refuse_a_net_too(call, message, model):
    with pytest.raises(SelectionError, match=message):
        call(Net(model).lora(1, wrapper=ToyLinear))


def test_an_error_says_that_equinox_has_emptied_the_file(model, tmp_path):
    with pytest.raises(Exception, match="leaf with path") as error:
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", Net(model))
    assert isinstance(error.value.__cause__, SelectionError)
    assert "has emptied its file already" in str(error.value.__cause__)


@pytest.mark.parametrize("function", [jno.lora.save_adapters, jno.lora.load_adapters])
def test_a_path_before_the_model_is_named(function):
    message = f"^{function.__name__} takes a model, but was given the path 'adapters.safetensors'$"
    with pytest.raises(SelectionError, match=message):
        function(*2 * [pathlib.Path("adapters.safetensors")])  # types are checked: both are paths

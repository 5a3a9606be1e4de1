"""Functions of models, ours and those of JAX and Equinox, refuse a `Net`: it is not a pytree."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import jno.lora
from jno.lora import AdapterSet, Net, SelectionError, extract_adapters

from .toys import ToyLinear

KEY = jax.random.key(0)

# Every public function of a model that takes no `Net`.
CALLS = {
    "adapter_effects": jno.lora.adapter_effects,
    "apply_lora": lambda net: jno.lora.apply_lora(net, key=KEY),
    "citation": jno.lora.citation,
    "extract_adapters": extract_adapters,
    "lora_report": jno.lora.lora_report,
    "lora_trainable_filter": jno.lora.lora_trainable_filter,
    "merge_lora": jno.lora.merge_lora,
    "Net": Net,
    "partial_lora_trainable_filter": jno.lora.partial_lora_trainable_filter,
    "plan_lora": jno.lora.plan_lora,
    "plot_adapters": jno.lora.plot_adapters,
    "swap_adapters": lambda net: jno.lora.swap_adapters(net, AdapterSet({})),
    "to_lora": jno.lora.to_lora,
    "unwrap_lora": jno.lora.unwrap_lora,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_net_is_refused_by_name(name, model, registry):
    net = Net(model).lora(1, wrapper=ToyLinear)
    with pytest.raises(SelectionError, match=rf"^{name} takes a model.*{name}\(net\.module, "):
        CALLS[name](net)


def test_every_function_of_a_model_is_in_the_table():
    takes_a_net = {"load_adapters", "save_adapters"}
    public = {name: getattr(jno.lora, name) for name in jno.lora.__all__}
    functions = {
        name
        for name, value in public.items()
        if inspect.isfunction(value) and "model" in inspect.signature(value).parameters
    }
    assert functions - takes_a_net <= CALLS.keys()
    assert len(functions) > 14


# What Equinox would do to one leaf that is no array: nothing, or with the values of the first call.
OTHERS = {
    "filter_jit of it": lambda net: eqx.filter_jit(net)(1),
    "filter_jit with it": lambda net: eqx.filter_jit(lambda n: n.module.temperature)(net),
    "filter_grad": lambda net: eqx.filter_grad(lambda n: n.module.temperature)(net),
    "partition": lambda net: eqx.partition({"inside": net}, eqx.is_array),
    "tree_at": lambda net: eqx.tree_at(lambda n: n.module, net, None),
    "inference_mode": eqx.nn.inference_mode,
    "a net in a model": lambda net: Net([net]),
    "tree.map": lambda net: jax.tree.map(lambda x: x, net),
}


@pytest.mark.parametrize("name", OTHERS)
def test_functions_of_pytrees_refuse_a_net_too(name, model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    with pytest.raises(SelectionError, match=r"is a handle.*not a pytree.*net\.module"):
        OTHERS[name](net)


def test_no_empty_file_is_written_for_a_net(model, tmp_path):
    with pytest.raises(Exception, match="leaf with path") as error:
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", Net(model))
    assert isinstance(error.value.__cause__, SelectionError)


def test_a_net_may_be_closed_over(model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    assert jnp.allclose(jax.jit(lambda token: net(token))(0), net(0), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"plot_adapters"}))
def test_a_set_of_adapters_is_refused_by_name(name, model, registry):
    adapters = extract_adapters(Net(model).lora(1, wrapper=ToyLinear).module)
    message = rf"^{name} takes a model, but was given an AdapterSet.*{name}\(swap_adapters\("
    with pytest.raises(SelectionError, match=message):
        CALLS[name](adapters)

"""Functions of models, ours and those of JAX and Equinox, refuse a `Net`: it is not a pytree."""

import inspect
import pathlib

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
    "apply_lora": lambda net: jno.lora.apply_lora(net, key=KEY),
    "citation": jno.lora.citation,
    "disabled": jno.lora.disabled,
    "extract_adapters": extract_adapters,
    "lora_report": jno.lora.lora_report,
    "lora_trainable_filter": jno.lora.lora_trainable_filter,
    "merge_lora": jno.lora.merge_lora,
    "Net": Net,
    "partial_lora_trainable_filter": jno.lora.partial_lora_trainable_filter,
    "plan_lora": jno.lora.plan_lora,
    "resolve": jno.lora.resolve,
    "swap_adapters": lambda net: jno.lora.swap_adapters(net, AdapterSet({})),
    "unwrap_lora": jno.lora.unwrap_lora,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_net_and_a_set_of_adapters_are_refused_with_what_to_give(name, model, registry):
    net = Net(model).lora(1, wrapper=ToyLinear)
    with pytest.raises(SelectionError, match=rf"^{name} takes a model.*Give net\.module$"):
        CALLS[name](net)
    message = rf"^{name} takes a model.*AdapterSet.*Give swap_adapters\(model, adapters\)$"
    with pytest.raises(SelectionError, match=message):
        CALLS[name](extract_adapters(net.module))


def test_every_function_of_a_model_is_in_the_table():
    takes_a_net = {"load_adapters", "save_adapters"}
    public = {name: getattr(jno.lora, name) for name in jno.lora.__all__}
    functions = {
        name
        for name, value in public.items()
        if inspect.isfunction(value) and "model" in inspect.signature(value).parameters
    }
    assert functions - takes_a_net <= CALLS.keys()
    assert len(functions) > 11


# Equinox would leave a leaf that is not an array alone, or keep the values of the first call.
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


# JAX keeps what these compile by the hash of the function, with the weights of the first call.
CACHED = {
    "jit of it": lambda net: jax.jit(net)(0),
    "jit with it": lambda net: jax.jit(lambda n, x: n(x), static_argnums=0)(net, 0),
    "checkpoint": lambda net: jax.checkpoint(net)(0),
    "cond": lambda net: jax.lax.cond(jnp.asarray(True), net, net, 0),
    "make_jaxpr": lambda net: jax.make_jaxpr(net)(0),
}


@pytest.mark.parametrize("name", CACHED)
def test_a_function_compiled_for_a_net_is_refused(name, model):
    net = Net(model).lora(1, wrapper=ToyLinear)
    with pytest.raises(SelectionError, match=r"A Net changes.*jax\.jit\(net\).*net\.module, x\)"):
        CACHED[name](net)


def test_the_advice_follows_an_update(model):
    net = Net(model).freeze().lora(1, wrapper=ToyLinear)
    call = eqx.filter_jit(lambda model, x: model(x))
    before = call(net.module, 0)
    net.update(jax.tree.map(lambda a: a + 1, net.partition()[0]))
    assert not jnp.allclose(before, net(0))
    assert jnp.allclose(call(net.module, 0), net(0), rtol=1e-6)
    assert jax.vmap(net)(jnp.arange(2)).shape[0] == 2
    closed_over = jax.jit(lambda token: net(token))
    assert jnp.allclose(closed_over(0), net(0), rtol=1e-6)


def test_an_error_says_that_equinox_has_emptied_the_file(model, tmp_path):
    with pytest.raises(Exception, match="leaf with path") as error:
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", Net(model))
    assert isinstance(error.value.__cause__, SelectionError)
    assert "has emptied its file already" in str(error.value.__cause__)


@pytest.mark.parametrize("path", ["adapters.safetensors", pathlib.Path("adapters.safetensors")])
@pytest.mark.parametrize("function", [jno.lora.save_adapters, jno.lora.load_adapters])
def test_a_path_before_the_model_is_named(function, path):
    message = f"^{function.__name__} takes a model, but was given the path 'adapters.safetensors'$"
    with pytest.raises(SelectionError, match=message):
        function(path, path)  # the types of the arguments are checked, so both are paths

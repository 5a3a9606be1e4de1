"""Functions of models, ours and those of JAX and Equinox, refuse a `Net`: it is not a pytree."""

import functools
import inspect
import pathlib

import equinox as eqx
import jax
import pytest

import jno.lora
from jno.lora import AdapterSet, Net, SelectionError, extract_adapters

from .toys import ToyLinear

KEY = jax.random.key(0)

TAKE_A_NET = {"load_adapters", "save_adapters"}
# Further arguments of functions of a model.
ARGUMENTS = {
    "apply_lora": {"key": KEY},
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
    "checkpoint": (lambda net: jax.checkpoint(net)(0), CHANGES),
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

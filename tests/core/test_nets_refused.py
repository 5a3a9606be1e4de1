"""Functions of models refuse a `Net`, which JAX sees as one leaf: no silent empty result."""

import inspect

import jax
import pytest

import jno.lora
from jno.lora import Net, SelectionError, extract_adapters
from jno.lora.peft import load_peft, save_peft

from .toys import ToyLinear

KEY = jax.random.key(0)

# Every public function of a model that takes no `Net`.
CALLS = {
    "adapter_effects": jno.lora.adapter_effects,
    "apply_lora": lambda net: jno.lora.apply_lora(net, key=KEY),
    "citation": jno.lora.citation,
    "compare": lambda net: jno.lora.compare(net, min, [], ["none"], steps=1, key=KEY),
    "extract_adapters": extract_adapters,
    "load_peft": lambda net: load_peft(net, "nowhere"),
    "lora_report": jno.lora.lora_report,
    "lora_trainable_filter": jno.lora.lora_trainable_filter,
    "merge_lora": jno.lora.merge_lora,
    "Net": Net,
    "partial_lora_trainable_filter": jno.lora.partial_lora_trainable_filter,
    "plan_lora": jno.lora.plan_lora,
    "plot_adapters": jno.lora.plot_adapters,
    "save_peft": lambda net: save_peft(net, "nowhere"),
    "swap_adapters": lambda net: jno.lora.swap_adapters(net, extract_adapters(net.module)),
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

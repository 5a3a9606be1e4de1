"""The errors of `load_peft` for adapters that do not fit the model: all reasons at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, lora_tensors, normal, stack_of, write_files

from jno.lora import (
    Net,
    PeftFormatError,
    PluginError,
    Registry,
    SelectionError,
    extract_adapters,
)
from jno.lora.peft import load_peft, save_peft
from jno_lora_zoo import LoRALinear


def test_when_nothing_matches_both_sides_are_shown(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("model.layers.0.q_proj", 3, 4))
    with pytest.raises(PeftFormatError) as error:
        load_peft({"layers": [{"q_proj": linear, "k_proj": linear}]}, folder)
    message = str(error.value)
    assert "No module of the file is in the model" in message
    assert "- model.layers.0.q_proj: the model has no such layer" in message
    assert "'layers/0/q_proj'" in message
    assert 'rename={"^model/": ""}' in message


def test_everything_that_does_not_fit_is_listed_at_once(linear, tmp_path):
    key = jax.random.key(0)
    model = {
        "good": linear,
        "small": eqx.nn.Linear(4, 2, key=key),
        "carries": LoRALinear(linear, 1, 1.0, key=key),
        "attention": eqx.nn.MultiheadAttention(2, 4, key=key),
        "norm": eqx.nn.WeightNorm(linear),
        "not_meant": linear,
        "rows": stack_of(2),
    }
    tensors = {}
    for name in (*(name for name in model if name != "norm"), "norm.layer", "oops"):
        tensors |= lora_tensors(name, 3, 4)
    del tensors[f"{PREFIX}good.lora_A.weight"]
    tensors[f"{PREFIX}good.lora_C"] = normal(1)
    tensors[f"{PREFIX}small.bias"] = normal(7)
    folder = write_files(tmp_path, tensors, exclude_modules=["not_meant"])
    with pytest.raises(PeftFormatError) as error:
        load_peft(model, folder)
    message = str(error.value)
    for line in (
        "good: lora_A.weight: missing",
        "good/lora_C: the Linear has no such array",
        "small/bias: the model has float32[2], the file has float32[7]",
        "small: lora_B.weight: expected shape (2, 2), got (3, 2)",
        "carries: its layer carries a LoRALinear already",
        "attention: it is a MultiheadAttention; PEFT's tensors fit",
        "norm.layer: its layer is inside the norm at 'norm'",
        "not_meant: adapter_config.json does not target it",
        "rows: the model has a stack of 2 layers there",
        "oops: the model has no such layer; the nearest are",
        "Nothing was loaded.",
    ):
        assert line in message


class Computed(eqx.Module):
    """A linear layer whose bias is a property."""

    weight: jax.Array
    half_bias: jax.Array
    in_features: int = eqx.field(static=True, default=4)
    out_features: int = eqx.field(static=True, default=3)

    @property
    def bias(self):
        return 2 * self.half_bias

    def __call__(self, x):
        return self.weight @ x + self.bias


def test_a_bias_that_the_layer_computes_cannot_be_loaded(tmp_path):
    model = {"fc": Computed(jnp.ones((3, 4)), jnp.ones(3))}
    folder = write_files(tmp_path, {f"{PREFIX}fc.bias": normal(3)}, bias="all")
    with pytest.raises(PeftFormatError, match="fc/bias: the Computed has no such array"):
        load_peft(model, folder)
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.lora_B.bias": normal(3)}
    with pytest.raises(PeftFormatError, match="fc/bias: the Computed computes it"):
        load_peft(model, write_files(tmp_path, tensors, lora_bias=True))


def test_a_bias_of_another_form_is_told(linear, tmp_path):
    layer = eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(()))
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.lora_B.bias": normal(3)}
    with pytest.raises(PeftFormatError, match=r"fc/bias: the model has float32\[\], the file has"):
        load_peft({"fc": layer}, write_files(tmp_path, tensors, lora_bias=True))


def test_two_modules_of_one_path_are_refused(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("a", 3, 4) | lora_tensors("b", 3, 4))
    with pytest.raises(PeftFormatError, match="b: it stands for the same layer as 'a'"):
        load_peft({"a": linear, "b": linear}, folder, rename={"b": "a"})


@pytest.mark.parametrize(
    ("options", "shape", "reason"),
    [
        ({"padding_mode": "CIRCULAR", "padding": 1}, (2, 3, 3), "padding_mode='CIRCULAR'"),
        ({"dilation": 2}, (2, 3, 3), r"dilation=\(2,\)"),
    ],
)
def test_convolutions_that_peft_computes_otherwise_are_refused(options, shape, reason, tmp_path):
    layer = eqx.nn.Conv1d(3, 4, 3, key=jax.random.key(0), **options)
    tensors = {
        f"{PREFIX}conv.lora_A.weight": normal(*shape),
        f"{PREFIX}conv.lora_B.weight": normal(4, 2, 1),
    }
    with pytest.raises(PeftFormatError, match=reason):
        load_peft({"conv": layer}, write_files(tmp_path, tensors))


def test_a_missing_plugin_is_named(linear, tmp_path):
    with pytest.raises(PluginError, match=r"jno-lora\[zoo\]"):
        load_peft(
            {"fc": linear},
            write_files(tmp_path, lora_tensors("fc", 3, 4)),
            registry=Registry(discover=False),
        )


def test_numbers_of_another_kind_are_no_bias(linear, tmp_path):
    layer = eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(3, jnp.int8))
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.bias": np.asarray([1.5, -3.7, 1e9], "f4")}
    with pytest.raises(PeftFormatError, match=r"has int8\[3\], the file has float32\[3\]"):
        load_peft({"fc": layer}, write_files(tmp_path, tensors, bias="lora_only"))


def test_two_arrays_of_one_path_are_not_both_replaced(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.bias": np.ones(3, "f4")}
    model = {"fc": linear, "fc/bias": jnp.zeros(3)}
    with pytest.raises(SelectionError, match="Two arrays have the path 'fc/bias'"):
        load_peft(model, write_files(tmp_path, tensors, bias="lora_only"))


@pytest.mark.parametrize("index", [2, 3])
def test_a_bias_of_a_layer_that_a_stack_lacks_is_told(tmp_path, index):
    tensors = lora_tensors("0.fc", 3, 4) | lora_tensors("1.fc", 3, 4, seed=5)
    tensors |= {f"{PREFIX}{index}.fc.bias": np.ones(3, "f4")}
    folder = write_files(tmp_path, tensors, bias="lora_only")
    rename = {r"(\d+)/(.*)": r"\2[\1]"}
    with pytest.raises(PeftFormatError, match=rf"here for \[{index}\]"):
        load_peft({"fc": stack_of(2)}, folder, rename=rename)


@pytest.mark.parametrize("call", [load_peft, save_peft])
def test_a_set_is_refused_by_name_and_a_net_where_it_is_loaded(call, linear):
    net, name = Net([linear]).lora(1), call.__name__
    if call is load_peft:
        with pytest.raises(SelectionError, match=r"^load_peft takes .*load_peft\(net\.module, "):
            call(net, "nowhere")
    with pytest.raises(SelectionError, match=f"{name} takes a model, but was given an "):
        call(extract_adapters(net.module), "nowhere")

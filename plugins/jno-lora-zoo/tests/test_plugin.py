"""The zoo is a plugin like any other, and says what each adapter is."""

import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata

import pytest
from zoo_cases import ADAPTERS, ALL_METHODS, build, each

import jno.lora
import jno_lora_zoo
from jno_lora_zoo import plugin

VARIANTS = {
    "LoRA": ("lora", "2106.09685"),
    "rsLoRA": ("rslora", "2312.03732"),
    "LoRAFA": ("lora-fa", "2308.03303"),
    "DoRA": ("dora", "2402.09353"),
    "PiSSA": ("pissa", "2404.02948"),
    "LoRAXS": ("lora-xs", "2405.17604"),
    "VeRA": ("vera", "2310.11454"),
    "MiLoRA": ("milora", "2406.09044"),
    "IA3": ("ia3", "2205.05638"),
    "LoKr": ("lokr", "2309.14859"),
    "OFT": ("oft", "2306.07280"),
}
FIELDS = {
    "LoRA": {"lora_A", "lora_B"},
    "rsLoRA": {"lora_A", "lora_B"},
    "LoRAFA": {"lora_B"},
    "DoRA": {"magnitude", "lora_A", "lora_B"},
    "PiSSA": {"lora_A", "lora_B"},
    "LoRAXS": {"R"},
    "VeRA": {"b", "d"},
    "MiLoRA": {"lora_A", "lora_B"},
    "IA3": {"scale"},
    "LoKr": {"kron_A", "kron_B"},
    "OFT": {"Q_blocks"},
}


def test_the_entry_point_provides_every_method_on_every_kind_of_layer():
    (entry,) = (
        e
        for e in metadata.distribution("jno-lora-zoo").entry_points
        if e.group == "jno.lora" and e.name == "zoo"
    )
    module = entry.load()
    assert module is plugin
    names = [cls.__name__ for cls in module.jno_lora_wrappers()]
    kinds = ("Linear", "Conv", "ConvTranspose", "InNorm", "Embedding", "Recurrent")
    assert sorted(names) == sorted(method + kind for method in ALL_METHODS for kind in kinds)
    assert {a.name for a in ADAPTERS} <= set(names)


def test_the_registry_finds_them_there():
    (record,) = (r for r in jno.lora.registered() if r.distribution == "jno-lora-zoo")
    assert (record.status, record.error) == ("loaded", None)
    found = {w.name: w.cls for w in record.wrappers}
    assert found.items() >= {a.name: a.cls for a in ADAPTERS}.items()
    automatic = ["LoRAConvTranspose", "LoRAEmbedding", "LoRARecurrent"]
    assert [name for name, cls in found.items() if cls.auto] == automatic


MADE = """
import jax, equinox as eqx, jno.lora, jno_lora_zoo

def made():
    classes = [jno.lora.LoRAWrapper]
    for cls in classes:
        classes += cls.__subclasses__()
    return {cls.__name__ for cls in classes if cls.__module__ == "jno_lora_zoo.adapters"}

def adapted(**spec):
    model = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    return jno.lora.apply_lora(model, rank=1, key=jax.random.key(0), **spec)

assert made() == set(), made()
adapted()
assert made() == {"LoRALinear", "LoRAConv"}, made()
adapted(wrapper="dora")
dora = {"DoRALinear", "DoRAConv", "DoRAConvTranspose"}
assert made() == {"LoRALinear", "LoRAConv", *dora}, made()
from jno.lora import OFTConv
assert OFTConv is jno_lora_zoo.OFTConv is jno_lora_zoo.adapters.OFTConv
assert made() == {"LoRALinear", "LoRAConv", "OFTConv", *dora}, made()
assert {"OFTConv", "VeRAEmbedding", "grow"} <= {*dir(jno_lora_zoo)}
"""


def test_a_class_is_made_when_it_is_named():
    subprocess.run([sys.executable, "-c", MADE], check=True)


def test_a_name_that_the_zoo_lacks_is_an_error_that_names_the_module():
    for module in (jno_lora_zoo, jno_lora_zoo.adapters):
        with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'DoRALin'"):
            module.DoRALin  # noqa: B018


@each()
def test_each_is_found_by_its_name_in_the_core(adapter):
    assert getattr(jno.lora, adapter.name) is adapter.cls


@each()
def test_each_keeps_the_contract(adapter):
    problems = importlib.import_module("jno.lora._contract._problems")
    assert problems.contract_problems(adapter.cls) == ()


@each()
def test_each_says_what_it_is(adapter):
    cls = adapter.cls
    assert (cls.variant, cls.about.paper) == VARIANTS[adapter.method]
    assert set(cls.adapter_fields) == FIELDS[adapter.method]
    assert set(re.findall("[a-z]+", cls.about.formula)) <= {"r", "in", "out", "ceil"}
    assert cls.about.formula
    assert cls.auto is False


OPTIONS = {
    **dict.fromkeys(("LoRA", "rsLoRA", "LoRAFA"), ("multiplier", "dropout", "bias")),
    **dict.fromkeys(("DoRA", "VeRA", "LoKr"), ("multiplier",)),
    **dict.fromkeys(("PiSSA", "MiLoRA"), ("svd",)),
    "LoRAXS": ("svd", "multiplier"),
}


@each()
def test_each_names_its_options_and_refuses_others(adapter):
    _, *parameters = inspect.signature(adapter.cls.__init__).parameters
    known = ["base", "rank", "alpha", "key", "adapter_dtype", *OPTIONS.get(adapter.method, ())]
    assert parameters == known
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        build(adapter, adapter.case("plain", "plain"), other=1)
    layer = adapter.case("plain", "plain").layer
    with pytest.raises(
        jno.lora.SelectionError, match=r"no option 'adapter_dtyp'(.|\n)*did you mean"
    ):
        jno.lora.Net(layer).lora(2, wrapper=adapter.name, options={"adapter_dtyp": "float32"})


@each()
def test_each_is_documented_with_its_law_its_cost_and_its_paper(adapter):
    doc = inspect.getdoc(adapter.cls)
    assert doc
    assert f"arXiv:{adapter.cls.about.paper}" in doc
    assert "Law:" in doc
    assert {"parameters", "train"} <= set(re.findall("[a-z]+", doc))


def test_methods_and_layer_kinds_are_exported_for_other_plugins():
    for name in (*ALL_METHODS, "LinearLayer", "ConvLayer", "LayerKind", "Method"):
        assert name in jno_lora_zoo.__all__
        assert inspect.getdoc(getattr(jno_lora_zoo, name))
    for adapter in ADAPTERS:
        bases = (
            getattr(jno_lora_zoo, adapter.method),
            getattr(jno_lora_zoo, adapter.kind + "Layer"),
        )
        assert adapter.cls.__bases__ == bases

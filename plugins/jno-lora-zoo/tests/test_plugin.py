"""The zoo is a plugin like any other, and says what each adapter is."""

import inspect
import re
from importlib import metadata

import pytest
from zoo_cases import ALL_METHODS

import jno.lora
import jno_lora_zoo
from jno_lora_zoo import METHODS, plugin

KINDS = ("Linear", "Conv", "ConvTranspose", "InNorm", "Embedding", "Recurrent")


def test_the_registry_finds_every_method_on_every_kind_of_layer_by_the_entry_point():
    (entry,) = (
        e
        for e in metadata.distribution("jno-lora-zoo").entry_points
        if e.group == "jno.lora" and e.name == "zoo"
    )
    assert entry.load() is plugin
    (record,) = (r for r in jno.lora.registered() if r.distribution == "jno-lora-zoo")
    assert (record.status, record.error) == ("loaded", None)
    found = {w.name: w.cls for w in record.wrappers}
    assert sorted(found) == sorted(method + kind for method in ALL_METHODS for kind in KINDS)
    for name, cls in found.items():
        assert cls is getattr(jno.lora, name) is getattr(jno_lora_zoo, name)
    automatic = ["LoRAConvTranspose", "LoRAEmbedding", "LoRARecurrent"]
    assert [name for name, cls in found.items() if cls.auto] == automatic


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_each_is_exported_and_documented_with_its_law_its_cost_and_its_paper(method):
    assert method.__name__ in jno_lora_zoo.__all__
    doc = inspect.getdoc(method)
    assert "Law:" in doc and {"parameters", "train"} <= set(re.findall("[a-z]+", doc))
    number = method.about.paper
    assert f"arXiv:{number}" in doc or f"OpenReview:{number}" in doc
    assert method.about.formula

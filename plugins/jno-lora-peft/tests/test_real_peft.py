"""Against PEFT itself, on Torch: `make test-peft`."""

import dataclasses
import importlib.util
import os
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from peft_cases.files import read_files
from peft_cases.twins import assert_close, outputs, twin

from jno.lora import PeftFormatError, apply_lora, lora_trainable_filter
from jno.lora.peft import load_peft, save_peft
from jno_lora_peft.files.config import known_settings
from jno_lora_peft.types import TYPES

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

from peft_cases import torch_side as torch


@pytest.fixture(scope="module")
def plain():
    return twin(torch.weights(torch.model()))


def saved(theirs, directory):
    with torch.quiet():
        theirs.save_pretrained(directory)


def test_the_twins_agree(plain):
    assert_close(outputs(plain), torch.outputs(torch.model()))


def test_no_setting_of_peft_is_taken_for_a_misspelling():
    for kind, config in torch.configurations().items():
        if kind in TYPES:
            assert {field.name for field in dataclasses.fields(config)} <= known_settings(kind)


def test_the_page_names_every_field_of_lora_config():
    page = (pathlib.Path(__file__).parents[3] / "docs" / "peft.md").read_text()
    fields = dataclasses.fields(torch.configurations()["LORA"])
    assert not [field.name for field in fields if field.name not in page]


# The cases of types that are held by LoRA, or by the weight itself, and are written otherwise.
WRITTEN_AS = {
    **dict.fromkeys(("pvera", "vblora-topk", "unilora", "frod", "osf"), "LORA"),
    **dict.fromkeys(("lokr", "lokr-small", "lokr-core", "gralora-hybrid", "loha-small"), "LORA"),
    **dict.fromkeys(("supertuning-lora", "tinylora", "tinylora-tied"), "LORA"),
    **dict.fromkeys(("glora", "glora-vectors", "glora-constants"), "LORA"),
}


@pytest.mark.parametrize("case", torch.CASES)
def test_files_of_peft_compute_the_same_here_and_are_written_back(case, plain, tmp_path):
    theirs = torch.trained(torch.CASES[case])
    saved(theirs, tmp_path)
    ours = load_peft(plain, tmp_path, tied=False)
    assert_close(outputs(ours), torch.outputs(theirs))
    # The adapters do something, or nothing would have been compared.
    with pytest.raises(AssertionError):
        assert_close(outputs(plain), torch.outputs(theirs), 1e-2)
    save_peft(ours, tmp_path / "again", tied=False)
    config, _ = read_files(tmp_path / "again")
    assert config["peft_type"] == WRITTEN_AS.get(case, read_files(tmp_path)[0]["peft_type"])
    again, warned = torch.loaded(tmp_path / "again")
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert_close(torch.outputs(again), torch.outputs(theirs))
    assert_close(outputs(load_peft(plain, tmp_path / "again", tied=False)), outputs(ours))


@pytest.mark.parametrize("case", ["pissa", "pissa-rslora", "olora", "osf"])
def test_a_start_that_changed_the_weight_is_found_as_peft_finds_it(case, plain, tmp_path):
    saved(torch.trained(torch.CASES[case]), tmp_path)
    theirs, _ = torch.loaded(tmp_path)
    assert_close(outputs(load_peft(plain, tmp_path)), torch.outputs(theirs), 1e-4)


def test_a_converted_pissa_adapter_computes_the_same_here(plain, tmp_path):
    theirs = torch.converted_pissa(tmp_path)
    assert_close(outputs(load_peft(plain, tmp_path)), torch.outputs(theirs))


@pytest.mark.parametrize("case", torch.REFUSED)
def test_an_adapter_without_an_exact_form_is_refused(case, plain, tmp_path):
    config, reason = torch.REFUSED[case]
    saved(torch.trained(config), tmp_path)
    with pytest.raises(PeftFormatError, match=reason):
        load_peft(plain, tmp_path)


LAYERS = "fc|out|conv|grouped|embed"
EVEN = "wide|deep"
WRITTEN = {
    "lora": {
        "wrappers": "lora",
        "specs": [{"target": "^fc", "rank": 3}, {"target": "conv", "alpha": 0.7}, {"target": ""}],
    },
    "lora-of-one-layer": {"wrappers": "lora", "target": "^fc"},
    "rslora": {
        "wrappers": "rslora",
        "specs": [{"target": "conv|grouped", "rank": 3, "alpha": 2.0}, {"target": LAYERS}],
    },
    "lora-fa": {"wrappers": "lora-fa", "target": LAYERS},
    "lora-bias": {"wrappers": "lora", "target": "fc|out", "options": {"bias": "train"}},
    "rslora-bias": {"wrappers": "rslora", "target": "fc|conv2", "options": {"bias": "train"}},
    "dora": {"wrappers": "dora", "target": "fc|out|conv|embed"},
    "pissa": {"wrappers": "pissa", "target": LAYERS},
    "milora": {"wrappers": "milora", "target": LAYERS},
    "lora-xs": {"wrappers": "lora-xs", "target": LAYERS},
    "vera": {"wrappers": "vera", "rank": 6, "target": LAYERS},
    "vera-shared": {"wrappers": "vera-shared", "rank": 6, "target": "fc|out|wide|deep"},
    "vera-shared-convs": {"wrappers": "vera-shared", "rank": 2, "target": "conv"},
    "tied-lora": {"wrappers": "tied-lora", "target": "fc|out|wide|deep"},
    "vb-lora": {
        "wrappers": "vb-lora",
        "target": EVEN,
        "alpha": 1.0,
        "options": {"vectors": 8, "vector_length": 2},
    },
    "vb-lora-scaled": {
        "wrappers": "vb-lora",
        "target": EVEN,
        "options": {"vectors": 8, "vector_length": 3},
    },
    "ia3": {"wrappers": "ia3", "target": "out"},
    "ia3-in": {"wrappers": "ia3-in", "target": "fc|out|wide|deep"},
    "ia3-out": {"wrappers": "ia3-out", "target": "fc|out|wide|conv2|grouped"},
    "loha": {"wrappers": "loha", "target": "fc|out|conv|grouped"},
    "lokr": {"wrappers": "lokr", "target": EVEN},
    "adalora": {"wrappers": "adalora", "target": "fc|wide|deep"},
    "hira": {"wrappers": "hira", "target": "fc|out|conv|embed"},
    "delora": {"wrappers": "delora", "target": "fc|out"},
    "gralora": {"wrappers": "gralora", "target": EVEN},
    "miss": {"wrappers": "miss", "target": "fc|out"},
    "miss-bat": {"wrappers": "miss", "target": EVEN, "options": {"bat": True}},
    "oft-in": {"wrappers": "oft-in", "target": EVEN},
    "oft-in-series": {"wrappers": "oft-in", "target": EVEN, "options": {"terms": 6}},
    "boft": {"wrappers": "boft", "target": EVEN, "options": {"factors": 1}},
    "hra": {"wrappers": "hra", "target": "fc|out"},
    "road": {"wrappers": "road", "target": EVEN, "options": {"group_size": 2, "per_pair": 2}},
    "deft": {"wrappers": "deft", "target": "fc|out"},
    "deft-qr": {"wrappers": "deft", "target": "fc|out", "options": {"orthogonal": True}},
    "psoft": {"wrappers": "psoft", "target": "fc|out"},
    "c3a": {"wrappers": "c3a", "target": EVEN},
    "shira": {"wrappers": "shira", "rank": 1, "target": EVEN},
    "supertuning": {"wrappers": "supertuning", "target": EVEN, "options": {"count": 9}},
    "tinylora": {"wrappers": "tinylora", "target": "fc|out"},
    "several": {
        "specs": [
            {"target": "out", "wrapper": "rslora", "rank": 3},
            {"target": "conv", "wrapper": "pissa"},
            {"target": "embed", "wrapper": "vera-embedding"},
            {"target": "fc", "wrapper": "lora"},
        ]
    },
    "bfloat16": {"wrappers": "lora", "target": "fc", "options": {"adapter_dtype": jnp.bfloat16}},
}


@pytest.mark.parametrize("case", WRITTEN)
def test_saved_adapters_compute_the_same_in_peft(case, plain, tmp_path):
    arguments = {"rank": 2, "alpha": 3.0, **WRITTEN[case]}
    if "wrappers" in arguments:
        arguments["wrappers"] = [arguments["wrappers"], f"{arguments['wrappers']}-embedding"]
    ours = moved(apply_lora(plain, **arguments, key=jax.random.key(1)))
    save_peft(ours, tmp_path, tied=False)
    theirs, warned = torch.loaded(tmp_path)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert_close(outputs(ours), torch.outputs(theirs))
    # And back, where nothing is lost on the way.
    assert_close(outputs(load_peft(plain, tmp_path, tied=False)), outputs(ours))


def moved(model):
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    leaves, treedef = jax.tree.flatten(trains)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    added = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, added), rest)

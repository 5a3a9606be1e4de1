"""Against PEFT itself, on Torch: `make test-peft`."""

import dataclasses

import jax.numpy as jnp
import pytest
from peft_cases import torch_side as torch
from peft_cases.files import read_files, trained
from peft_cases.twins import assert_close, outputs, twin
from safetensors.numpy import save_file

from jno.lora import PeftFormatError
from jno_lora_convert import extract_peft
from jno_lora_peft import load_peft, save_peft
from jno_lora_peft.config import KNOWN_SETTINGS
from jno_lora_peft.types import TYPES


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
            assert {field.name for field in dataclasses.fields(config)} <= KNOWN_SETTINGS


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
    again = torch.loaded(tmp_path / "again")
    assert_close(torch.outputs(again), torch.outputs(theirs))
    assert_close(outputs(load_peft(plain, tmp_path / "again", tied=False)), outputs(ours))


@pytest.mark.parametrize("case", ["pissa", "pissa-rslora", "olora", "osf"])
def test_a_start_that_changed_the_weight_is_found_as_peft_finds_it(case, plain, tmp_path):
    saved(torch.trained(torch.CASES[case]), tmp_path)
    theirs = torch.loaded(tmp_path)
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
RANKS = [{"target": "^fc", "rank": 3}, {"target": "conv", "alpha": 0.7}, {"target": LAYERS}]
SEVERAL = [
    {"target": "out", "wrapper": "rslora", "rank": 3},
    {"target": "conv", "wrapper": "pissa"},
    {"target": "embed", "wrapper": "vera-embedding"},
    {"target": "fc", "wrapper": "lora"},
]
# Adapters that no file above gives, by a name: the wrapper, the layers, and further arguments.
WRITTEN = {
    "lora-of-one-layer": ("lora", "^fc", {}),
    "lora": ("lora", None, {"specs": RANKS}),
    "rslora": ("rslora", None, {"specs": RANKS}),
    "lora-bias": ("lora", "fc|out", {"options": {"bias": "train"}}),
    "rslora-bias": ("rslora", "fc|conv2", {"options": {"bias": "train"}}),
    "bfloat16": ("lora", "fc", {"options": {"adapter_dtype": jnp.bfloat16}}),
    "dora": ("dora", "fc|out|conv|embed", {}),
    "pissa": ("pissa", LAYERS, {}),
    "milora": ("milora", LAYERS, {}),
    "lora-xs": ("lora-xs", LAYERS, {}),
    "vera": ("vera", LAYERS, {"rank": 6}),
    "vera-shared-convs": ("vera-shared", "conv", {}),
    "tied-lora": ("tied-lora", "fc|out|wide|deep", {}),
    "vb-lora-scaled": ("vb-lora", EVEN, {"options": {"vectors": 8, "vector_length": 3}}),
    "ia3-out": ("ia3-out", "fc|out|wide|conv2|grouped", {}),
    "psoft": ("psoft", "fc|out", {}),
    "several": (None, None, {"specs": SEVERAL}),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_saved_adapters_compute_the_same_in_peft(case, plain, tmp_path):
    wrapper, target, options = WRITTEN[case]
    wrappers = None if wrapper is None else [wrapper, f"{wrapper}-embedding"]
    ours = trained(plain, wrappers, target=target, **options)
    save_peft(ours, tmp_path, tied=False)
    theirs = torch.loaded(tmp_path)
    assert_close(outputs(ours), torch.outputs(theirs))
    # And back, where nothing is lost on the way.
    assert_close(outputs(load_peft(plain, tmp_path, tied=False)), outputs(ours))


def test_a_full_fine_tune_that_was_extracted_computes_the_same_in_peft(tmp_path):
    base, tuned = torch.model(), torch.model()
    torch.moved(tuned)
    weights = torch.weights(tuned) | {"grouped.weight": torch.weights(base)["grouped.weight"]}
    states = {"base": torch.weights(base), "tuned": weights}
    for name, tensors in states.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = (tmp_path / f"{name}.safetensors" for name in states)
    extract_peft(*paths, tmp_path / "adapter", energy=1.0, leftovers="keep", tied=False)
    expected = outputs(twin(weights))
    assert_close(torch.outputs(torch.loaded(tmp_path / "adapter")), expected)
    assert_close(outputs(load_peft(twin(states["base"]), tmp_path / "adapter")), expected)

"""Files that PEFT wrote (see `write_files.py`), against what Torch computed with them."""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from peft_cases.files import CASES, read_files
from peft_cases.twins import assert_close, inputs, layer_at, outputs, twin
from safetensors.numpy import load_file

from jno.lora.extending import adapted_layers
from jno_lora_peft import load_peft, save_peft
from jno_lora_peft.types import TYPES

FILES = Path(__file__).with_name("peft_cases") / "files.tar.xz"
# The variants of adapters that are written as LoRA.
AS_LORA = {"pissa": "pissa", "olora": "olora", "osf": "milora", "tinylora": "tinylora"}
AS_LORA |= dict.fromkeys(("lokr-small", "unilora", "pvera", "glora", "frod"), "lora")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    with tarfile.open(FILES) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def plain(files):
    return twin(load_file(files / "base.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_file_of_peft_computes_what_it_did_in_torch_and_is_written_back(
    case, files, plain, tmp_path
):
    model = load_peft(plain, files / case, tied=False)
    expected = load_file(files / case / "outputs.safetensors")
    assert_close(outputs(model), expected)
    kind = "LORA" if case in AS_LORA else read_files(files / case)[0]["peft_type"]
    variants = {adapter.method.variant for _, adapter in adapted_layers(model)}
    assert variants <= ({AS_LORA[case]} if case in AS_LORA else {*TYPES[kind].variants})
    # In these, nothing but arrays of the model changed.
    assert bool(variants) == (case not in ("beft", "tokens", "norms"))
    save_peft(model, tmp_path, tied=False)
    assert read_files(tmp_path)[0]["peft_type"] == kind
    again = load_peft(plain, tmp_path, tied=False)
    if kind == "LORA":  # maybe in other adapters
        assert_close(outputs(again), expected)
    else:
        assert jax.tree.structure(again) == jax.tree.structure(model)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
            assert np.allclose(one, other, rtol=1e-6, atol=1e-7)


def test_a_model_with_the_matrices_of_vera_is_called_at_once(files, plain):
    model = load_peft(plain, files / "vera", tied=False)
    expected = load_file(files / "vera" / "outputs.safetensors")
    found = {name: jax.vmap(layer_at(model, name))(x) for name, x in inputs().items()}
    assert_close(found, expected)
    adapters = [adapter for _, adapter in adapted_layers(model)]
    assert len(adapters) > 1 and len({(id(a.A.value), id(a.B.value)) for a in adapters}) == 1

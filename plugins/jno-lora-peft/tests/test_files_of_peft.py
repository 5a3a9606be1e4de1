"""Files that PEFT wrote (see `write_files.py`), against what Torch computed with them."""

import tarfile
from pathlib import Path

import pytest
from peft_cases.twins import assert_close, outputs, twin
from safetensors.numpy import load_file

from jno.lora import lora_report
from jno.lora.peft import load_peft

FILES = Path(__file__).with_name("peft_cases") / "files.tar.xz"
# What each holds: the classes of its adapters here.
CASES = {
    "lora": {"LoRALinear", "LoRAConv", "LoRAEmbedding"},
    "rslora": {"rsLoRALinear", "rsLoRAConv", "rsLoRAEmbedding"},
    "dora": {"DoRALinear", "DoRAConv", "DoRAEmbedding"},
    "bias": {"LoRALinear", "LoRAConv"},
    "modules": {"LoRALinear"},
    "vera": {"LoRALinear"},
    "ia3-bias": {"IA3Linear", "IA3Conv"},
    "loha": {"LoRALinear", "LoRAConv"},
    "lokr-small": {"LoRALinear", "LoRAConv"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    with tarfile.open(FILES) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def plain(files):
    return twin(load_file(files / "base.safetensors"))


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_peft_computes_what_it_did_in_torch(case, files, plain):
    model = load_peft(plain, files / case)
    assert_close(outputs(model), load_file(files / case / "outputs.safetensors"))
    assert {row.wrapper.__name__ for row in lora_report(model).rows} == CASES[case]

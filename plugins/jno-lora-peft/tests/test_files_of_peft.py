"""Files that PEFT wrote (see `write_files.py`), against what Torch computed with them."""

import tarfile
from pathlib import Path

import jax
import pytest
from peft_cases import listing
from peft_cases.files import read_files
from peft_cases.twins import assert_close, inputs, layer_at, outputs, twin
from safetensors.numpy import load_file

from jno.lora import lora_report
from jno.lora.extending import adapted_layers
from jno.lora.peft import load_peft, save_peft
from jno_lora_peft import types

FILES = Path(__file__).with_name("peft_cases") / "files.tar.xz"
# The classes of the adapters in each file.
CASES = {
    "lora": {"LoRALinear", "LoRAConv", "LoRAEmbedding"},
    "rslora": {"rsLoRALinear", "rsLoRAConv", "rsLoRAEmbedding"},
    "dora": {"DoRALinear", "DoRAConv", "DoRAEmbedding"},
    "bias": {"LoRALinear", "LoRAConv"},
    "modules": {"LoRALinear"},
    "vera": {"VeRASharedLinear"},
    "vblora": {"VBLoRALinear"},
    "ia3-bias": {"IA3OutLinear", "IA3OutConv"},
    "ia3-inputs": {"IA3InLinear", "IA3InConv", "IA3Linear"},
    "loha": {"LoHaLinear", "LoHaConv"},
    "lokr-small": {"LoRALinear", "LoRAConv"},
    "lokr-square": {"LoKrLinear"},
    "pissa": {"PiSSALinear"},
    "olora": {"OLoRALinear"},
    "osf": {"MiLoRALinear"},
    "adalora": {"AdaLoRALinear"},
    "hira": {"HiRALinear", "HiRAConv", "HiRAEmbedding"},
    "delora": {"DeLoRALinear"},
    "gralora": {"GraLoRALinear"},
    "miss": {"MiSSLinear"},
    "miss-bat": {"MiSSLinear"},
    "c3a": {"C3ALinear"},
    "randlora": {"RandLoRALinear"},
    "oft": {"OFTInLinear"},
    "oft-cayley": {"OFTInLinear"},
    "boft": {"BOFTLinear"},
    "hra": {"HRALinear"},
    "road-4": {"RoAdLinear"},
    "deft": {"DEFTLinear"},
    "shira": {"SHiRALinear"},
    "supertuning": {"SuperTuningLinear"},
    "fourierft": {"FourierFTLinear"},
    "waveft": {"WaveFTLinear"},
    "tinylora": {"TinyLoRALinear"},
    **{key: {"LoRALinear"} for key in ("unilora", "pvera", "glora", "frod")},
    # Nothing but arrays of the model changed.
    **{key: set[str]() for key in ("beft", "tokens", "norms")},
}
# Adapters that are written as another type than they were read from.
AS_LORA = ("lokr-small", "pissa", "olora", "osf", "tinylora", "unilora", "pvera")
AS_LORA = (*AS_LORA, "glora", "frod")


def test_the_page_lists_the_types_as_they_are():
    assert listing.PAGE.read_text() == listing.page()


def test_each_type_has_a_file_of_its_name():
    modules = Path(types.__file__).parent.glob("[!_]*.py")
    assert {module.stem.upper() for module in modules} == types.TYPES.keys()


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
def test_a_file_of_peft_computes_what_it_did_in_torch_and_is_written_back(
    case, files, plain, tmp_path
):
    model = load_peft(plain, files / case, tied=False)
    expected = load_file(files / case / "outputs.safetensors")
    assert_close(outputs(model), expected)
    assert {row.wrapper.__name__ for row in lora_report(model).rows} == CASES[case]
    save_peft(model, tmp_path, tied=False)
    kind = "LORA" if case in AS_LORA else read_files(files / case)[0]["peft_type"]
    assert read_files(tmp_path)[0]["peft_type"] == kind
    assert_close(outputs(load_peft(plain, tmp_path, tied=False)), expected)


def test_a_model_with_the_matrices_of_vera_is_called_at_once(files, plain):
    model = load_peft(plain, files / "vera", tied=False)
    expected = load_file(files / "vera" / "outputs.safetensors")
    found = {name: jax.vmap(layer_at(model, name))(x) for name, x in inputs().items()}
    assert_close(found, expected)
    adapters = [adapter for _, adapter in adapted_layers(model)]
    assert len(adapters) > 1 and len({(id(a.A.value), id(a.B.value)) for a in adapters}) == 1

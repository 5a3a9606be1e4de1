"""The errors of `load_peft` for damaged files, and for types that are not held."""

import numpy as np
import pytest
from peft_cases.files import lora_tensors, write_files

from jno.lora import (
    JnoLoraWarning,
    PeftFormatError,
)
from jno.lora.peft import load_peft


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "PSOFT"}, "whose signs are not in the file"),
        ({"peft_type": "NEW"}, "no adapter of jno.lora computes the same"),
        ({"peft_type": 3}, "has the peft_type 3"),
        ({"peft_type": []}, r"has the peft_type \[\]"),
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', not int or float"),
        ({"target_modules": "("}, "not a valid regular expression"),
        ({"rank_pattern": 3}, "rank_pattern is 3, not dict"),
        ({"layer_replication": [[0, 2]]}, "layers of the model are copied"),
        ({"init_lora_weights": "loftq"}, "takes something out of the layer's weight"),
    ],
)
def test_an_unsupported_configuration_says_why(config, reason, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), **config)
    with pytest.raises(PeftFormatError, match=reason):
        load_peft({"fc": linear}, folder)


@pytest.mark.parametrize("setting", ["use_news", "lora_aplha", "boft_block_size"])
@pytest.mark.parametrize("value", [True, False, 2])
def test_a_setting_that_the_type_lacks_in_peft_warns(setting, value, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), **{setting: value})
    with pytest.warns(JnoLoraWarning, match=f"sets '{setting}', which PEFT 0.21 does not have"):
        load_peft({"fc": linear}, folder)


@pytest.mark.parametrize(
    ("kind", "advised"),
    [
        ("PSOFT", "merge_and_unload(.|\n)*save_as_lora"),
        ("XLORA", "its LoRAs have directories, which load"),
        ("PROMPT_TUNING", "rows of its embedding"),
    ],
)
def test_an_error_of_a_type_says_what_can_be_done(kind, advised, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), peft_type=kind)
    with pytest.raises(PeftFormatError, match=advised):
        load_peft({"fc": linear}, folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", None, "No such file"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"[]", "not a JSON object"),
        ("adapter_config.json", b"\xff", "cannot be used"),
        ("adapter_model.safetensors", None, "No such file"),
        ("adapter_model.safetensors", b"\0" * 7, "damaged, or not a safetensors file"),
        ("adapter_model.safetensors", b"\xff" * 20, "not a safetensors file"),
    ],
)
def test_damaged_files_are_named(name, content, reason, linear, tmp_path):
    path = write_files(tmp_path, lora_tensors("fc", 3, 4)) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PeftFormatError, match=reason) as error:
        load_peft({"fc": linear}, tmp_path)
    assert str(path) in str(error.value)


def test_a_pickle_is_not_opened(linear, tmp_path):
    write_files(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(PeftFormatError, match="a pickle, which can run any program"):
        load_peft({"fc": linear}, tmp_path)
    with pytest.raises(PeftFormatError, match="is not a directory"):
        load_peft({"fc": linear}, tmp_path / "adapter_model.bin")


def test_an_empty_file_and_tensors_of_integers_are_refused(linear, tmp_path):
    with pytest.raises(PeftFormatError, match="holds no tensors"):
        load_peft({"fc": linear}, write_files(tmp_path, {}))
    tensors = {name: t.astype(np.int8) for name, t in lora_tensors("fc", 3, 4).items()}
    with pytest.raises(PeftFormatError, match="expected floating numbers, got int8"):
        load_peft({"fc": linear}, write_files(tmp_path, tensors))

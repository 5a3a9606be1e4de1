"""The errors of `load_peft` for damaged files, and for types that are not held."""

import re

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
        ({"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
        ({"target_modules": "("}, "not a valid regular expression"),
        ({"target_modules": "a{99999999999}"}, "not a valid regular expression"),
        ({"target_modules": 9999 * "(" + 9999 * ")"}, "not a valid regular expression"),
        ({"rank_pattern": {"fc": 1.5}}, "not a table of ranks"),
        ({"layer_replication": [[0, 2]]}, "layers of the model are copied"),
        ({"init_lora_weights": "loftq"}, "takes something out of the layer's weight"),
        ({"bias": "some"}, "PEFT knows 'none', 'all'"),
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
    ("kind", "advised", "not_advised"),
    [
        ("PSOFT", "merge_and_unload(.|\n)*save_as_lora", "PEFT cannot"),
        ("XLORA", "directories of their own", "merge_and_unload|save_as_lora"),
        ("PROMPT_TUNING", "rows of the model's embedding", "merge_and_unload|save_as_lora"),
        ("PREFIX_TUNING", "PEFT cannot merge it either", "merge_and_unload|save_as_lora"),
    ],
)
def test_only_what_peft_can_do_is_advised(kind, advised, not_advised, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), peft_type=kind)
    with pytest.raises(PeftFormatError, match=advised) as error:
        load_peft({"fc": linear}, folder)
    assert not re.search(not_advised, str(error.value))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", None, "No such file"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"[]", "not a JSON object"),
        ("adapter_config.json", b"\xff", "cannot be used"),
        ("adapter_model.safetensors", None, "No such file"),
        ("adapter_model.safetensors", b"\0" * 7, "cut short"),
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

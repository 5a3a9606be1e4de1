"""A folder of weights: which of its files are read, and which are copied beside merged weights."""

import json

import pytest
from peft_cases.files import normal
from safetensors.numpy import save_file

from jno.lora import PeftFormatError
from jno_lora_convert import convert_lora


def test_the_files_that_transformers_reads_are_merged_and_the_others_copied(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    state = {"a.kernel": normal(4, 3), "a.lora_a": normal(4, 2), "a.lora_b": normal(2, 3)}
    index = {"weight_map": dict.fromkeys(state, "shard.safetensors")}
    beside = {"model.safetensors.index.json", "modeling_x.py", "tokenizer.tiktoken"}
    (base / "original").mkdir(parents=True)
    for name in (*beside, "pytorch_model.bin"):
        (base / name).write_text(json.dumps(index))
    save_file(state, base / "consolidated.safetensors")
    with pytest.raises(PeftFormatError, match="shard"):
        convert_lora(base, out, to="merged")
    save_file(state, base / "shard.safetensors")
    convert_lora(base, out, to="merged", verify=True)
    proof = "adapter_proof.safetensors"
    assert {path.name for path in out.iterdir()} == {*beside, "shard.safetensors", proof}
    with pytest.raises(PeftFormatError, match=r"must end in \.safetensors"):
        convert_lora(base / "shard.safetensors", tmp_path / "m.h5", to="merged")

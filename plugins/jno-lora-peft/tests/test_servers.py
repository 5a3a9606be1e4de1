"""What servers of language models refuse in files that `save_peft` writes."""

import equinox as eqx
import jax
import pytest
from peft_cases.files import write_files

from jno.lora import Net
from jno_lora_peft import inspect_peft

KEY = jax.random.key(0)
SPECS = [{"target": "q_proj", "rank": 2, "alpha": 4}, {"target": "v_proj", "rank": 3}]
# By name: the call, and a word of what vLLM and sglang-jax refuse.
CASES = {
    "lora": ({"target": "q_proj"}, None, None),
    "pissa": ({"wrapper": "pissa"}, None, None),  # written as LoRA, of twice the rank
    "rslora": ({"wrapper": "rslora"}, None, "use_rslora"),
    "several ranks": ({"specs": SPECS}, None, "rank_pattern"),
    "dora": ({"wrapper": "dora"}, "use_dora", "use_dora"),
    "bias": ({"options": {"bias": "train"}}, "lora_bias", "lora_bias"),
    "ia3": ({"rank": 1, "wrapper": "ia3"}, "this is IA3", "this is IA3"),
}


def said(folder):
    servers = inspect_peft(folder)["servers"]
    return "; ".join(servers["vLLM"]), "; ".join(servers["sglang-jax"])


@pytest.mark.parametrize("name", CASES)
def test_servers_load_what_inspect_says(name, save, tmp_path):
    call, *refused = CASES[name]
    call = {"rank": 2, "alpha": 4, **call} if "specs" not in call else call
    linear = eqx.nn.Linear(4, 4, use_bias=name not in ("pissa", "ia3"), key=KEY)
    model = {"layers": [{"self_attn": {"q_proj": linear, "v_proj": linear}}]}
    save(Net(model, key=KEY).freeze().lora(**call), rename={"^": "model/"})
    for lines, word in zip(said(tmp_path / "saved"), refused, strict=True):
        assert lines == "" if word is None else word in lines


def test_every_reason_has_a_line(tmp_path):
    linear = eqx.nn.Linear(4, 4, key=KEY)
    names = ("layers.0.q_proj.lora_A.weight", "norm.weight")
    tensors = {f"base_model.model.model.{name}": linear.weight.__array__() for name in names}
    settings = {"lora_alpha": 1, "target_modules": ["lm_head"], "bias": "lora_only"}
    settings |= {"modules_to_save": ["norm", "score"], "init_lora_weights": "pissa"}
    vllm, sglang = said(write_files(tmp_path, tensors, r=1024, use_qalora=True, **settings))
    for words in ("bias", "pissa", "['norm']", "rank 1024", "use_qalora", "norm.weight"):
        assert words in vllm
    for words in ("lm_head", "modules_to_save", "bias", "leaves out the tensors"):
        assert words in sglang
    # Empty lists are off, as vLLM takes them.
    vllm, _ = said(write_files(tmp_path, tensors, layer_replication=[], init_lora_weights="EVA"))
    assert "layer_replication" not in vllm and "init_lora_weights" not in vllm

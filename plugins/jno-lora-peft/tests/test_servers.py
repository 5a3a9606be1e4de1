"""Servers of language models load what `save_peft` writes: the checks that they publish.

- vLLM 0.33: https://github.com/vllm-project/vllm/blob/main/vllm/lora/peft_helper.py, and
  `parse_fine_tuned_lora_name` in https://github.com/vllm-project/vllm/blob/main/vllm/lora/utils.py
- sglang-jax: https://github.com/sgl-project/sglang-jax/tree/main/python/sgl_jax/srt/lora
"""

import json
import re

import equinox as eqx
import jax
import pytest
from peft_cases.files import read_files, write_files
from safetensors.numpy import load_file

from jno.lora import Net
from jno.lora.peft import inspect_peft, save_peft

KEY = jax.random.key(0)
RENAME = {"^": "model/"}


def vllm_loads(settings, names):
    """`PEFTHelper.from_dict` and `validate_legal` with ranks up to 512; then the names."""
    if not {"r", "lora_alpha", "target_modules"} <= settings.keys() or settings["r"] <= 0:
        return False
    starts = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
    start = settings.get("init_lora_weights", True)
    refused = [
        set(settings.get("modules_to_save") or ()) - {"classifier", "score"},
        *map(settings.get, ("use_dora", "lora_bias", "alora_invocation_tokens")),
        *map(settings.get, ("layer_replication", "use_bdlora", "use_qalora")),
        isinstance(start, str) and start.lower() not in starts,
        max([settings["r"], *(settings.get("rank_pattern") or {}).values()]) > 512,
        settings.get("bias", "none") != "none",
    ]
    return not any(refused) and all(map(vllm_reads, names))


def vllm_reads(name):
    parts = name.split(".")
    if name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
        return True  # left out, as it is in the base
    if parts[-1] in ("weight", "bias"):
        is_factor = parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B")
        return is_factor or parts[-2] in ("score", "classifier")
    return parts[-1] in ("lora_embedding_A", "lora_embedding_B")


def sglang_computes_the_same(settings, tensors):
    """`LoRAConfig`, `get_normalized_target_modules`, `LoRAAdapter`: what they read of both files.

    The adapter has one scale, `lora_alpha / r`, and one rank, and the factors of seven projections.
    """
    targets = settings["target_modules"]
    if any(module in targets for module in ("embed_tokens", "lm_head")):
        return False
    known = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    if not {target.split(".")[-1] for target in targets} <= known:
        return False
    if settings.get("use_rslora") or settings.get("alpha_pattern"):
        return False  # never read, so another scale
    pattern = re.compile(r"base_model\.model\..*layers\.\d+\.[\w.]+\.lora_([AB])\.weight")
    matches = {name: pattern.fullmatch(name) for name in tensors}
    if not all(matches.values()):
        return False
    return all(tensors[n].shape["AB".index(m[1])] == settings["r"] for n, m in matches.items())


def layers(count=2, **options):
    linear = eqx.nn.Linear(4, 4, key=KEY, **options)
    return {"layers": [{"self_attn": {"q_proj": linear, "v_proj": linear}} for _ in range(count)]}


def cases():
    """A name, options of the layers, a call, and whether vLLM and sglang-jax compute the same."""
    one = {"rank": 2, "alpha": 4}
    yield "lora", {}, one, (True, True)
    yield "mlp", {}, {**one, "target": "q_proj"}, (True, True)
    yield "rslora", {}, {**one, "wrapper": "rslora"}, (True, False)
    yield "dora", {}, {**one, "wrapper": "dora"}, (False, False)
    # Read as LoRA, of twice the rank.
    yield "pissa", {"use_bias": False}, {**one, "wrapper": "pissa"}, (True, True)
    yield "bias", {}, {**one, "options": {"bias": "train"}}, (False, False)
    specs = [{"target": "q_proj", "rank": 2, "alpha": 4}, {"target": "v_proj", "rank": 3}]
    yield "several ranks", {}, {"specs": specs}, (True, False)
    yield "ia3", {"use_bias": False}, {"rank": 1, "wrapper": "ia3"}, (False, False)


@pytest.mark.parametrize(("name", "model", "call", "served"), list(cases()))
def test_servers_load_what_inspect_says(name, model, call, served, tmp_path):
    save_peft(Net(layers(**model), key=KEY).freeze().lora(**call), tmp_path, rename=RENAME)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    said = inspect_peft(tmp_path)["servers"]
    vllm, sglang = served
    assert vllm_loads(settings, tensors) is vllm and (not said["vLLM"]) is vllm, said
    assert (not said["sglang-jax"]) is sglang, said
    if "r" in settings:
        assert sglang_computes_the_same(settings, tensors) is sglang


def test_every_reason_has_a_line(tmp_path):
    save_peft(Net(layers(1), key=KEY).freeze().lora(2, target="q_proj"), tmp_path, rename=RENAME)
    _, tensors = read_files(tmp_path)
    settings = {
        "r": 1024, "lora_alpha": 1, "target_modules": ["lm_head"], "bias": "lora_only",
        "modules_to_save": ["norm", "score"], "init_lora_weights": "pissa", "use_qalora": True,
    }  # fmt: skip
    tensors["base_model.model.norm.weight"] = next(iter(tensors.values()))
    write_files(tmp_path, tensors, **settings)
    said = {server: "; ".join(lines) for server, lines in inspect_peft(tmp_path)["servers"].items()}
    for words in ("bias", "pissa", "['norm']", "rank 1024", "use_qalora", "norm.weight"):
        assert words in said["vLLM"]
    for words in ("lm_head", "modules_to_save", "bias", "leaves out the tensors"):
        assert words in said["sglang-jax"]
    # Empty lists are off, as vLLM takes them.
    settings = {"peft_type": "LORA", "r": 0, "layer_replication": [], "alora_invocation_tokens": []}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    said = {server: "; ".join(lines) for server, lines in inspect_peft(tmp_path)["servers"].items()}
    assert "layer_replication" not in said["vLLM"] and "alora" not in said["vLLM"]

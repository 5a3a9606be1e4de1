"""Adapter features that language-model servers reject, or silently compute differently.

vLLM 0.33: `PEFTHelper` (github.com/vllm-project/vllm, vllm/lora/peft_helper.py) and the names of
tensors in `parse_fine_tuned_lora_name` (vllm/lora/utils.py). sglang-jax: `LoRAConfig`,
`LoRAAdapter` and the memory pool (github.com/sgl-project/sglang-jax, python/sgl_jax/srt/lora).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

# Starts that leave the weight alone, according to vLLM.
_PURE = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_HIGHEST_RANK = 512  # of vLLM's `--max-lora-rank`
_READ_BY_VLLM = re.compile(
    r".*\.lora_[AB]\.weight|.*\.lora_embedding_[AB]"
    r"|.*\.(?:embed_tokens|lm_head)\.base_layer\.weight|.*\.(?:score|classifier)\.(?:weight|bias)"
)
_READ_BY_SGLANG = re.compile(
    r".*\blayers\.\d+\..*\b(?:[qkvo]|gate|up|down)_proj\.lora_[AB]\.weight"
)
_SHOWN = 3

# Settings that must be off, and why.
_VLLM = {
    "use_dora": "it has no DoRA",
    "lora_bias": "it has no biases in adapters",
    "alora_invocation_tokens": "it has no aLoRA",
    "layer_replication": "it copies no layers",
    "use_bdlora": "its factors are whole",
    "use_qalora": "it pools no inputs",
}
_SGLANG = {
    **dict.fromkeys(
        ("use_rslora", "rank_pattern", "alpha_pattern"), "it scales all updates by lora_alpha / r"
    ),
    "use_dora": "it leaves the magnitudes out",
    "lora_bias": "it leaves biases out",
    "modules_to_save": "it leaves trained modules out",
    "alora_invocation_tokens": "it has no aLoRA",
}


def refused_by_servers(
    settings: Mapping[str, Any], tensors: Collection[str]
) -> dict[str, list[str]]:
    """By server, a line for each feature that it rejects or silently ignores."""
    if settings.get("peft_type") != "LORA":
        line = f"it reads LoRA, and this is {settings.get('peft_type')}"
        return {"vLLM": [line], "sglang-jax": [line]}
    vllm, sglang = (
        [f"{name}: {why}" for name, why in reasons.items() if settings.get(name)]
        for reasons in (_VLLM, _SGLANG)
    )
    start, targets = settings.get("init_lora_weights"), settings.get("target_modules")
    if settings.get("bias") not in (None, "none"):
        vllm.append("bias: it has no biases beside adapters")
        sglang.append("bias: it leaves biases out")
    if isinstance(start, str) and start.lower() not in _PURE:
        vllm.append(f"init_lora_weights={start!r}: it changed the weights of the base")
    saved = settings.get("modules_to_save") or []
    if left_out := [name for name in saved if name not in ("score", "classifier")]:
        vllm.append(f"modules_to_save={left_out}: it reads a score or a classifier alone")
    rank = max([settings.get("r") or 0, *(settings.get("rank_pattern") or {}).values()])
    if rank > _HIGHEST_RANK:
        vllm.append(f"rank {rank}: its highest is {_HIGHEST_RANK}")
    if not isinstance(targets, list):
        sglang.append("target_modules: it takes a list of names, not a regular expression")
    if tables := [name for name in ("embed_tokens", "lm_head") if name in (targets or ())]:
        sglang.append(f"target_modules: it refuses {', '.join(tables)}")
    vllm += _unread(tensors, _READ_BY_VLLM, "refuses")
    sglang += _unread(tensors, _READ_BY_SGLANG, "leaves out")
    return {"vLLM": vllm, "sglang-jax": sglang}


def _unread(names: Collection[str], read: re.Pattern[str], verb: str) -> list[str]:
    unread = [name for name in names if not read.fullmatch(name)]
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    return [f"it {verb} the tensors {', '.join(unread[:_SHOWN])}{more}"] if unread else []

"""What servers of language models refuse in an adapter, or compute in another way, unsaid.

vLLM 0.33: `PEFTHelper` (github.com/vllm-project/vllm, vllm/lora/peft_helper.py) and the names of
tensors in `parse_fine_tuned_lora_name` (vllm/lora/utils.py). sglang-jax: `LoRAConfig`,
`LoRAAdapter` and the memory pool (github.com/sgl-project/sglang-jax, python/sgl_jax/srt/lora).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Starts that leave the weight alone, as vLLM lists them.
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


def refused_by_servers(settings: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, list[str]]:
    """By server, a line for each thing that it refuses, or leaves out without a word."""
    names = list(tensors)
    if settings.get("peft_type") != "LORA":
        line = f"it reads LoRA, and this is {settings.get('peft_type')}"
        return {"vLLM": [line], "sglang-jax": [line]}
    vllm = [
        line
        for name, line in _OF_VLLM.items()
        if settings.get(name) and settings.get(name) != "none"
    ]
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PURE:
        vllm.append(f"init_lora_weights={start!r}: it changed the weights of the base")
    saved = _items(settings.get("modules_to_save"))
    if left := [name for name in saved if name not in ("score", "classifier")]:
        vllm.append(f"modules_to_save={left}: it reads a score or a classifier alone")
    ranks = [settings.get("r"), *_items(settings.get("rank_pattern"))]
    rank = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    if rank > _HIGHEST_RANK:
        vllm.append(f"rank {rank}: its highest is {_HIGHEST_RANK}")
    targets = settings.get("target_modules")
    sglang = [line for name, line in _OF_SGLANG.items() if settings.get(name)]
    if settings.get("bias") not in (None, "none"):
        sglang.append("bias: it leaves biases out")
    if not isinstance(targets, list):
        sglang.append("target_modules: it takes a list of names, not a regular expression")
    elif tables := [name for name in ("embed_tokens", "lm_head") if name in targets]:
        sglang.append(f"target_modules: it refuses {', '.join(tables)}")
    lacking = _lacking(settings)
    return {
        "vLLM": lacking + vllm + _unread(names, _READ_BY_VLLM, "refuses"),
        "sglang-jax": lacking + sglang + _unread(names, _READ_BY_SGLANG, "leaves out"),
    }


def _lacking(settings: Mapping[str, Any]) -> list[str]:
    needed = ("r", "lora_alpha", "target_modules")
    lines = [f"{name}: it is missing" for name in needed if name not in settings]
    rank = settings.get("r", 1)
    is_rank = isinstance(rank, int) and rank > 0
    return lines if is_rank else [*lines, f"r: it is {rank!r}, and not a positive integer"]


def _items(value: Any) -> list[Any]:
    """What a setting lists: a stranger's file may hold anything."""
    return [*value.values()] if isinstance(value, dict) else value if type(value) is list else []


def _unread(names: list[str], read: re.Pattern[str], verb: str) -> list[str]:
    unread = [name for name in names if not read.fullmatch(name)]
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    return [f"it {verb} the tensors {', '.join(unread[:_SHOWN])}{more}"] if unread else []


_OF_VLLM = {
    "use_dora": "use_dora: it has no DoRA",
    "lora_bias": "lora_bias: it has no biases in adapters",
    "bias": "bias: it has no biases beside adapters",
    "alora_invocation_tokens": "alora_invocation_tokens: it has no aLoRA",
    "layer_replication": "layer_replication: it copies no layers",
    "use_bdlora": "use_bdlora: its factors are whole",
    "use_qalora": "use_qalora: it pools no inputs",
}
_SCALE = "it scales all updates by lora_alpha / r"
_OF_SGLANG = {
    "use_rslora": f"use_rslora: {_SCALE}",
    "rank_pattern": f"rank_pattern: {_SCALE}",
    "alpha_pattern": f"alpha_pattern: {_SCALE}",
    "use_dora": "use_dora: it leaves the magnitudes out",
    "lora_bias": "lora_bias: it leaves biases out",
    "modules_to_save": "modules_to_save: it leaves trained modules out",
    "alora_invocation_tokens": "alora_invocation_tokens: it has no aLoRA",
}

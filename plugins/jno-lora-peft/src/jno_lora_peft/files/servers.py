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
_PATTERNS = ("rank_pattern", "alpha_pattern")
_SHOWN = 3


def refused_by_servers(settings: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, list[str]]:
    """By server, a line for each thing that it refuses, or leaves out without a word."""
    if settings.get("peft_type") != "LORA":
        line = f"it reads LoRA, and this is {settings.get('peft_type')}"
        return {"vLLM": [line], "sglang-jax": [line]}
    names, start = list(tensors), settings.get("init_lora_weights")
    has_biases = settings.get("bias") not in (None, "none")
    saved = settings.get("modules_to_save") or []
    left_out = [name for name in saved if name not in ("score", "classifier")]
    rank = max([settings.get("r") or 0, *(settings.get("rank_pattern") or {}).values()])
    targets = settings.get("target_modules")
    is_list = isinstance(targets, list)
    tables = [name for name in ("embed_tokens", "lm_head") if name in (targets or ())]
    scale = "it scales all updates by lora_alpha / r"
    vllm = [
        (settings.get("use_dora"), "use_dora: it has no DoRA"),
        (settings.get("lora_bias"), "lora_bias: it has no biases in adapters"),
        (has_biases, "bias: it has no biases beside adapters"),
        (settings.get("alora_invocation_tokens"), "alora_invocation_tokens: it has no aLoRA"),
        (settings.get("layer_replication"), "layer_replication: it copies no layers"),
        (settings.get("use_bdlora"), "use_bdlora: its factors are whole"),
        (settings.get("use_qalora"), "use_qalora: it pools no inputs"),
        (
            isinstance(start, str) and start.lower() not in _PURE,
            f"init_lora_weights={start!r}: it changed the weights of the base",
        ),
        (left_out, f"modules_to_save={left_out}: it reads a score or a classifier alone"),
        (rank > _HIGHEST_RANK, f"rank {rank}: its highest is {_HIGHEST_RANK}"),
    ]
    sglang = [
        *((settings.get(n), f"{n}: {scale}") for n in ("use_rslora", *_PATTERNS)),
        (settings.get("use_dora"), "use_dora: it leaves the magnitudes out"),
        (settings.get("lora_bias"), "lora_bias: it leaves biases out"),
        (saved, "modules_to_save: it leaves trained modules out"),
        (settings.get("alora_invocation_tokens"), "alora_invocation_tokens: it has no aLoRA"),
        (has_biases, "bias: it leaves biases out"),
        (not is_list, "target_modules: it takes a list of names, not a regular expression"),
        (tables, f"target_modules: it refuses {', '.join(tables)}"),
    ]
    return {
        "vLLM": [line for is_so, line in vllm if is_so] + _unread(names, _READ_BY_VLLM, "refuses"),
        "sglang-jax": [line for is_so, line in sglang if is_so]
        + _unread(names, _READ_BY_SGLANG, "leaves out"),
    }


def _unread(names: list[str], read: re.Pattern[str], verb: str) -> list[str]:
    unread = [name for name in names if not read.fullmatch(name)]
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    return [f"it {verb} the tensors {', '.join(unread[:_SHOWN])}{more}"] if unread else []

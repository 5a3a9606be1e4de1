"""The types and settings of PEFT without an exact equivalent here, and the reasons."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..types import TYPES, refused_start

_BY_REASON = {
    "it gives the model further tokens, and changes no layer": "PROMPT_TUNING P_TUNING CPT "
    "MULTITASK_PROMPT_TUNING",
    "it gives attention further keys and values, and changes no layer": "PREFIX_TUNING CARTRIDGE",
    "it gives attention further tokens behind a gate, and changes no layer": "ADAPTION_PROMPT",
    "PEFT leaves layers of the classifier that mixes its LoRAs out of the file (the layers whose "
    "number is the name of a LoRA)": "XLORA",
    "it runs a small network beside the model": "SHADOW",
    "which rows of the weight form a group is not in the file": "ADAMSS",
    "it turns singular vectors into each other, whose signs are not in the file and differ between "
    "libraries": "PSOFT",
}
REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}

_MERGE = "merge in PEFT (`model.merge_and_unload()`), and take over the merged weights"
_CONVERT = "let PEFT approximate it by LoRA (`peft.save_as_lora`), and load that LoRA"
_ROWS = "Its tokens can be rows of the model's embedding: see Prompts in docs/peft."
# What PEFT can do with an adapter of such a type. It can merge no type that is not listed.
_ADVICE = {
    **dict.fromkeys(("PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING"), _ROWS),
    "ADAMSS": f"You can {_MERGE}.",
    "PSOFT": f"You can {_MERGE}; or {_CONVERT}.",
    "XLORA": "The LoRAs that it mixes have directories of their own, which load, and `XLoRA` of "
    "jno-lora-routed mixes them by a classifier that is trained anew.",
}

# Settings that change what an adapter computes into something that no adapter here does.
_SETTINGS = {
    "arrow_config": "several adapters are mixed by the input (Arrow)",
    "kasa_config": "the layer's weight is truncated (KaSA)",
    "layer_replication": "layers of the model are copied",
    "megatron_config": "the layers are split by Megatron",
    "monteclora_config": "the factors are drawn at random (MonteCLoRA)",
    "use_bdlora": "its factors are block diagonal (BD-LoRA)",
    "use_qalora": "inputs are pooled in groups (QALoRA)",
}

# Settings of any type: which modules it is for, where it comes from, and how it was trained.
_COMMON = (
    "peft_type target_modules exclude_modules modules_to_save layers_to_transform layers_pattern "
    "bias init_weights fan_in_fan_out base_model_name_or_path revision task_type auto_mapping "
    "peft_version inference_mode ensure_weight_tying"
)


def known_settings(peft_type: str) -> set[str]:
    """The settings of a type that are read, or refused, or do not change the outputs."""
    settings = {*_SETTINGS, *_COMMON.split(), *TYPES[peft_type].known_settings}
    # In PEFT, the configuration of AdaLoRA has all settings of LoRA.
    return settings | TYPES["LORA"].known_settings if peft_type == "ADALORA" else settings


def refused_type(peft_type: Any) -> str:
    """The reason why an adapter of this type cannot be loaded, and what to do instead."""
    if not isinstance(peft_type, str):
        return (
            f"adapter_config.json has the peft_type {peft_type!r}. It must be a string such as "
            '"LORA", as PEFT writes it.'
        )
    reason = REASONS.get(peft_type, "no adapter of jno.lora computes the same")
    advice = "PEFT cannot merge it either." if peft_type in REASONS else f"If PEFT can, {_MERGE}."
    return (
        f"An adapter of PEFT's type {peft_type!r} has no exact equivalent here: {reason}. "
        f"{_ADVICE.get(peft_type, advice)}\nThe types with an equivalent are {', '.join(TYPES)}."
    )


def refused_settings(values: Mapping[str, Any]) -> list[str]:
    """Why an adapter with this configuration cannot be loaded, a line for each reason."""
    lines = [f"{name} is set: {why}" for name, why in _SETTINGS.items() if values.get(name)]
    for name, (held, why) in TYPES[values["peft_type"]].only.items():
        if values.get(name, held) != held:
            lines.append(f"{name} is {values[name]!r}: {why}")
    lines += refused_start(values.get("init_lora_weights"))
    bias = values.get("bias") or "none"
    if bias not in ("none", "all") and not str(bias).endswith("_only"):
        lines.append(f"bias={bias!r}: PEFT knows 'none', 'all' and 'lora_only'")
    return lines


def malformed(settings: Mapping[str, Any]) -> list[str]:
    """A line for each setting that is not of the type that PEFT writes."""
    kind, checks = TYPES[settings["peft_type"]], dict(_CHECKS)
    if kind.name == "ADALORA":
        # Its rank pattern says which components are left, which the tensors say as well.
        settings = {**settings, "rank_pattern": None}
    for setting, check in ((kind.rank, _RANK), (kind.alpha, _NUMBER)):
        if setting is not None:
            checks[setting.name] = check
    lines = [
        f"{name} is {settings[name]!r}, not {words}"
        for name, (words, is_valid) in checks.items()
        if settings.get(name) is not None and not is_valid(settings[name])
    ]
    return lines or _bad_regexes(settings)


def _bad_regexes(settings: Mapping[str, Any]) -> list[str]:
    patterns: list[tuple[str, str]] = []
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(settings.get(name), str):
            patterns.append((settings[name], "{}"))
    for name in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        values = settings.get(name) or ()
        patterns += [(value, "({})") for value in ([values] if isinstance(values, str) else values)]
    lines: list[str] = []
    for pattern, whole in patterns:
        try:
            re.compile(pattern)
            # PEFT uses it inside of another pattern, where flags such as (?i) are not allowed.
            re.compile(whole.format(pattern))
        except (re.error, OverflowError, RecursionError) as err:
            lines.append(f"{pattern!r} is not a valid regular expression: {err}")
    return lines


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_table(check: Any) -> Any:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(token) is int and 0 <= token < 2**31 for token in value
    )


def _is_indices(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(type(index) is int for index in values)


_NAMES = ("a list of names or a regular expression", lambda v: isinstance(v, str) or _is_names(v))
_RANK = ("a whole number above 0", lambda v: type(v) is int and v > 0)
_NUMBER = ("a number", lambda v: type(v) in (int, float) and math.isfinite(v))
_RANKS = ("a table of ranks", _is_table(_RANK[1]))
# By setting: the words for it, and the check.
_CHECKS: dict[str, tuple[str, Any]] = {
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "feedforward_modules": _NAMES,
    "layers_pattern": _NAMES,
    "modules_to_save": ("a list of names", _is_names),
    "target_parameters": ("a list of names", _is_names),
    "alora_invocation_tokens": ("a list of numbers of tokens, from 0 to 2147483647", _is_tokens),
    "layers_to_transform": ("a number or a list of them", _is_indices),
    "alpha_pattern": ("a table of numbers", _is_table(_NUMBER[1])),
    "rank_pattern": _RANKS,
    "n_frequency_pattern": _RANKS,
}

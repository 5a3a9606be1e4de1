"""The settings of `adapter_config.json`: which modules they name, and which are unsupported."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jno.lora import PeftFormatError
from jno.lora.extending import bullets, warn

from .names import EMBEDDING, HEAD, is_embedding, may_be_tied
from .types import TYPES
from .types.lora import refused_start
from .types.type import Setting, Type

_ROWS = "it adds virtual tokens, which can become rows of the embedding (see Prompts)"
REASONS = {
    **dict.fromkeys(["PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING"], _ROWS),
    "PREFIX_TUNING": "it adds keys and values to attention, and changes no layer",
    "CARTRIDGE": "it adds keys and values to attention, and changes no layer",
    "ADAPTION_PROMPT": "it adds gated tokens to attention, and changes no layer",
    "XLORA": "the file lacks part of its classifier; its LoRAs load from their own directories",
    "SHADOW": "it runs a small network beside the model",
    "ADAMSS": "the file does not say which rows of the weight form a group",
    "PSOFT": "it rotates singular vectors, whose signs are not in the file",
}

# Settings that make an adapter compute something that no adapter here supports.
_SETTINGS = {
    "arrow_config": "several adapters are mixed by the input (Arrow)",
    "kasa_config": "the layer's weight is truncated (KaSA)",
    "layer_replication": "layers of the model are copied",
    "megatron_config": "the layers are split by Megatron",
    "monteclora_config": "the factors are drawn at random (MonteCLoRA)",
    "use_bdlora": "its factors are block diagonal (BD-LoRA)",
    "use_qalora": "inputs are pooled in groups (QALoRA)",
}

# Settings of every type: the adapter's modules, its origin, and how it was trained.
_COMMON = (
    "peft_type target_modules exclude_modules modules_to_save layers_to_transform layers_pattern "
    "bias init_weights fan_in_fan_out base_model_name_or_path revision task_type auto_mapping "
    "peft_version inference_mode ensure_weight_tying"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a PEFT adapter of a type that can be converted."""

    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Config":
        """Check a configuration. Settings that its type lacks only warn, as in PEFT."""
        peft_type = str(settings.get("peft_type"))
        if peft_type not in TYPES:
            reason = REASONS.get(peft_type, "no adapter of jno.lora computes the same outputs")
            raise PeftFormatError(
                f"An adapter of PEFT's type {peft_type!r} has no exact equivalent here: {reason}. "
                "If PEFT can, merge it there (`model.merge_and_unload()`) and take over the merged "
                "weights, or approximate it by LoRA (`peft.save_as_lora`) and load the result.\n"
                f"The types with an equivalent are {', '.join(TYPES)}."
            )
        if problems := _refused_settings(settings):
            raise PeftFormatError(
                f"This {peft_type} adapter of PEFT cannot be loaded:\n{bullets(problems)}"
            )
        if unknown := sorted(settings.keys() - known_settings(peft_type)):
            warn(
                f"adapter_config.json sets {', '.join(map(repr, unknown))}, which PEFT 0.21 does "
                f"not have for {peft_type}. They are ignored. The file may come from a newer "
                "PEFT, or the names may be misspelt."
            )
        return cls(settings)

    @property
    def type(self) -> Type:
        return TYPES[self.settings["peft_type"]]

    def rank(self, module: str) -> int:
        return self._for(module, self.type.rank)

    def alpha(self, module: str) -> float:
        """The numerator of the scale for the module with that name."""
        return 1.0 if self.type.alpha is None else self._for(module, self.type.alpha)

    def is_target(self, module: str) -> bool:
        """Whether PEFT would put an adapter on the module with that name."""
        excluded = self.settings.get("exclude_modules")
        targets = self.settings.get("target_modules")
        if excluded and _names(excluded, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self._saved):
            return False
        if targets is None or targets == "all-linear":
            return True
        return _names(targets, module) and (
            isinstance(targets, str) or module in targets or self._is_layer_to_transform(module)
        )

    @property
    def ties(self) -> bool:
        """Whether a tied head uses the new embedding in PEFT."""
        can_tie = self.type.name in ("LORA", "ADALORA")
        return can_tie and bool(self.settings.get("ensure_weight_tying"))

    def ties_adapter_of(self, module: str) -> bool:
        """Whether a tied head uses the adapter of the embedding with that name in PEFT."""
        if not self.ties or self.type.name != "LORA" or not is_embedding(module):
            return False
        if any(map(may_be_tied, self._saved)):
            return False
        targets = self.settings.get("target_modules")
        if isinstance(targets, str):
            return any(re.fullmatch(targets, name) for name in (EMBEDDING, HEAD))
        return any(map(may_be_tied, targets or ()))

    def saves(self, module: str) -> bool:
        return any(module.endswith(name) for name in self._saved)

    def rows(self, module: str) -> list[int] | None:
        """Which rows the file replaces in the embedding with that name."""
        rows = self.settings.get("token_indices") or self.settings.get("trainable_token_indices")
        if isinstance(rows, dict):
            return next((rows[name] for name in rows if module.endswith(name)), None)
        return rows

    @property
    def _saved(self) -> list[str]:
        return self.settings.get("modules_to_save") or []

    def _for(self, module: str, setting: Setting | None) -> Any:
        if setting is None:
            return 1
        module = module.partition("[")[0]  # all experts of an array share its numbers
        for key, value in (self.settings.get(setting.pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        value = self.settings.get(setting.name)
        return setting.default if value is None else value

    def _is_layer_to_transform(self, module: str) -> bool:
        layers = self.settings.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        layers = [layers] if isinstance(layers, int) else layers
        patterns = self.settings.get("layers_pattern") or r".*?\.[^.]*"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if match:  # the last group, because the pattern may have groups as well
                return int(match[match.re.groups]) in layers
        return False


def _names(names: str | list[str], module: str) -> bool:
    """Whether `module` matches: a regex matches whole names, a list also the ends of names."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def known_settings(peft_type: str) -> set[str]:
    """The settings of a type that are read, or unsupported, or do not change the outputs."""
    settings = {*_SETTINGS, *_COMMON.split(), *TYPES[peft_type].known_settings}
    # In PEFT, the configuration of AdaLoRA has all settings of LoRA.
    return settings | TYPES["LORA"].known_settings if peft_type == "ADALORA" else settings


def _refused_settings(settings: Mapping[str, Any]) -> list[str]:
    """Why an adapter with this configuration cannot be loaded, one line per reason."""
    kind = TYPES[settings["peft_type"]]
    lines = [f"{name} is set: {why}" for name, why in _SETTINGS.items() if settings.get(name)]
    for name, held, why in kind.only:
        if settings.get(name, held) != held:
            lines.append(f"{name} is {settings[name]!r}: {why}")
    for name in (setting.name for setting in (kind.rank, kind.alpha) if setting is not None):
        if not isinstance(settings.get(name), int | float | None):
            lines.append(f"{name} is {settings[name]!r}, not a number")
    p = settings.get("lora_dropout") or 0
    if not (isinstance(p, int | float) and 0 <= p < 1):
        lines.append(f"lora_dropout is {p!r}, not a probability from 0 to below 1")
    return lines + refused_start(settings.get("init_lora_weights"))

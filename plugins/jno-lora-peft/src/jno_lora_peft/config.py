"""The settings of `adapter_config.json`: which modules they name, and which are unsupported."""

import dataclasses
import re
from typing import Any

from jno.lora import PeftFormatError
from jno.lora.extending import bullets, warn

from .names import EMBEDDING, HEAD, is_embedding, may_be_tied
from .types import TYPES
from .types.lora import refused_start
from .types.type import Setting, Settings, Type

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

# All other settings of the types that are read.
_KNOWN = (
    "act_fn alora_invocation_tokens alpha alpha_pattern apply_GS auto_mapping "
    "base_model_name_or_path beta1 beta2 bias block_share block_size block_size_pattern "
    "boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor coft config_A_B config_C "
    "config_D_E corda_config d_initial decompose_both decompose_factor decomposition_method "
    "deft_dropout delora_lambda deltaT depth effective_rank ensure_weight_tying eps eva_config "
    "exclude_modules fan_in_fan_out feedforward_modules frod_dropout generator_seed "
    "gralora_dropout gralora_k group_size hira_dropout hybrid_r inference_mode init_ia3_weights "
    "init_logits_std init_lora_weights init_r init_scale init_theta_d_bound init_v_bound "
    "init_vector_bank_bound init_weights lambda_pattern layers_pattern layers_to_transform "
    "loftq_config lora_alpha lora_bias lora_dropout lora_ga_config mask_type megatron_core mini_r "
    "miss_dropout module_dropout modules_to_save n_frequency n_frequency_pattern n_skills "
    "n_splits n_tasks num_B num_cayley_neumann_terms num_vectors oft_block_size orth_reg_weight "
    "para peft_type peft_version poly_type progressbar proj_seed projection_prng_key "
    "projection_seed proportional_parameters pvera_dropout qalora_group_size r randlora_alpha "
    "randlora_dropout random_loc_seed random_seed rank_dropout rank_dropout_scale rank_pattern "
    "regularization_alpha revision runtime_config runtime_offload_base_weight sample_at_inference "
    "save_indices save_only_topk_weights save_precomputed_indices save_projection scaling "
    "select_top sparse sparse_rate sparsity stride_A target_modules target_parameters target_r "
    "target_svd_config task_type tfinal theta_d_length tinit tinylora_dropout token_indices topk "
    "total_step trainable_token_indices u unilora_dropout use_cayley_neumann use_dora "
    "use_effective_conv2d use_idwt use_rslora variant vblora_dropout vector_length velora_config "
    "vera_dropout very_sparse wavelet_family weight_tying"
)
KNOWN_SETTINGS = {*_SETTINGS, *_KNOWN.split()}


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a PEFT adapter of a type that can be converted."""

    settings: Settings

    @classmethod
    def parse(cls, settings: Settings) -> "Config":
        """Check a configuration. Settings that PEFT lacks only warn, as in PEFT."""
        peft_type = str(settings.get("peft_type"))
        if peft_type not in TYPES:
            reason = REASONS.get(peft_type, "no adapter of jno.lora computes the same outputs")
            raise PeftFormatError(
                f"PEFT's type {peft_type!r} has no exact equivalent here: {reason}. If PEFT can, "
                "merge it there (`merge_and_unload()`) or approximate it (`peft.save_as_lora`).\n"
                f"The types with an equivalent are {', '.join(TYPES)}."
            )
        if problems := _refused_settings(settings):
            raise PeftFormatError(
                f"This {peft_type} adapter of PEFT cannot be loaded:\n{bullets(problems)}"
            )
        if unknown := sorted(settings.keys() - KNOWN_SETTINGS):
            warn(
                f"adapter_config.json sets {', '.join(map(repr, unknown))}, which PEFT 0.21 does "
                "not have. A newer PEFT may, or a name is misspelt. Ignored."
            )
        return cls(settings)

    @property
    def type(self) -> Type:
        return TYPES[self.settings["peft_type"]]

    def rank(self, module: str) -> int:
        return self._number(module, self.type.rank) if self.type.rank else 1

    def alpha(self, module: str) -> float:
        """The numerator of the scale for the module with that name."""
        return float(self._number(module, self.type.alpha)) if self.type.alpha else 1.0

    def is_target(self, module: str) -> bool:
        """Whether PEFT would put an adapter on the module with that name."""
        targets = self.settings.get("target_modules")
        if _names(self.settings.get("exclude_modules") or [], module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self._saved):
            return False
        if targets is None or targets == "all-linear":
            return True
        is_selected = isinstance(targets, str) or module in targets or self._is_in_layers(module)
        return is_selected and _names(targets, module)

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

    def _number(self, module: str, setting: Setting) -> Any:
        module = module.partition("[")[0]  # all experts of an array share its numbers
        for key, value in (self.settings.get(setting.pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        value = self.settings.get(setting.name)
        return setting.default if value is None else value

    def _is_in_layers(self, module: str) -> bool:
        """Whether the number of the module's layer is in `layers_to_transform`, if it is set."""
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


def _refused_settings(settings: Settings) -> list[str]:
    """Why an adapter with this configuration cannot be loaded, one line per reason."""
    kind = TYPES[settings["peft_type"]]
    lines = [f"{name} is set: {why}" for name, why in _SETTINGS.items() if settings.get(name)]
    for name, held, why in kind.only:
        if settings.get(name, held) != held:
            lines.append(f"{name} is {settings[name]!r}: {why}")
    for name in (setting.name for setting in kind.numbers):
        if not isinstance(settings.get(name), int | float | None):
            lines.append(f"{name} is {settings[name]!r}, not a number")
    p = settings.get("lora_dropout") or 0
    if not (isinstance(p, int | float) and 0 <= p < 1):
        lines.append(f"lora_dropout is {p!r}, not a probability from 0 to below 1")
    return lines + refused_start(settings.get("init_lora_weights"))

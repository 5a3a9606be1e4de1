"""The types and settings of PEFT without an exact equivalent here, and the reasons."""

from collections.abc import Mapping
from typing import Any

from ._starts import PURE_STARTS, is_found
from ._types import TYPES

_BY_REASON = {
    "it gives the model further tokens, and changes no layer": "PROMPT_TUNING P_TUNING CPT "
    "MULTITASK_PROMPT_TUNING PREFIX_TUNING ADAPTION_PROMPT CARTRIDGE",
    "it mixes several adapters, by weights that depend on the input": "XLORA POLY LILY",
    "it runs a small network beside the model": "SHADOW",
    "its update depends on the input through an activation function": "PEANUT",
    "which rows of the weight form a group is not in the file": "ADAMSS",
    "it turns singular vectors into each other, whose signs are not in the file and differ between "
    "libraries": "PSOFT",
}
REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}


def refused_type(peft_type: Any) -> str:
    """The reason why an adapter of this type cannot be loaded, and what to do instead."""
    if not isinstance(peft_type, str):
        return (
            f"adapter_config.json has the peft_type {peft_type!r}. It must be a string such as "
            '"LORA", as PEFT writes it.'
        )
    reason = REASONS.get(peft_type, "no adapter of jno.lora computes the same")
    return (
        f"An adapter of PEFT's type {peft_type!r} has no exact equivalent here: {reason}.\n"
        f"Those of the types {', '.join(TYPES)} have one. For others, merge in PEFT "
        "(`model.merge_and_unload()`) and take over the merged weights, or let PEFT approximate "
        "the adapter by LoRA (`peft.save_as_lora`), and load that."
    )


# Settings that change what an adapter computes into something that no adapter here does.
_SETTINGS = {
    "alora_invocation_tokens": "the adapter acts from certain tokens on (aLoRA)",
    "arrow_config": "several adapters are mixed by the input (Arrow)",
    "kasa_config": "the layer's weight is truncated (KaSA)",
    "layer_replication": "layers of the model are copied",
    "megatron_config": "the layers are split by Megatron",
    "monteclora_config": "the factors are drawn at random (MonteCLoRA)",
    "target_parameters": "it adapts single parameters, not layers",
    "use_bdlora": "its factors are block diagonal (BD-LoRA)",
    "use_qalora": "inputs are pooled in groups (QALoRA)",
}

# The starts that PEFT can convert when it saves.
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")


def refused_settings(values: Mapping[str, Any]) -> list[str]:
    """Why an adapter with this configuration cannot be loaded, a line for each reason."""
    lines = [f"{name} is set: {why}" for name, why in _SETTINGS.items() if values.get(name)]
    for name, (held, why) in TYPES[values["peft_type"]].only.items():
        if values.get(name, held) != held:
            lines.append(f"{name} is {values[name]!r}: {why}")
    start = values.get("init_lora_weights")
    if not is_found(start) and not any(start is pure or start == pure for pure in PURE_STARTS):
        line = (
            f"init_lora_weights={start!r}: PEFT takes something out of the layer's weight at the "
            "start, and the file fits only the rest"
        )
        if isinstance(start, str) and start.startswith(_CONVERTIBLE):
            line += (
                ". Save it as plain LoRA in PEFT: `save_pretrained(directory, "
                "path_initial_model_for_weight_conversion=...)`"
            )
        lines.append(line)
    bias = values.get("bias") or "none"
    if bias not in ("none", "all") and not str(bias).endswith("_only"):
        lines.append(f"bias={bias!r}: PEFT knows 'none', 'all' and 'lora_only'")
    return lines


# Settings that are read, or refused above, or do not change the outputs: where the adapter comes
# from, how it started, and how it was trained.
KNOWN = frozenset(
    {
        *_SETTINGS,
        *("peft_type", "r", "lora_alpha", "alpha", "init_r", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"),
        *("layers_to_transform", "layers_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
        *("init_lora_weights", "init_weights", "init_ia3_weights", "d_initial", "save_projection"),
        *("projection_prng_key", "fan_in_fan_out", "base_model_name_or_path", "revision"),
        *("task_type", "auto_mapping", "peft_version", "inference_mode", "ensure_weight_tying"),
        *("lora_dropout", "vera_dropout", "rank_dropout", "module_dropout", "rank_dropout_scale"),
        *("decompose_both", "decompose_factor", "use_effective_conv2d", "qalora_group_size"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config"),
        *("megatron_core", "runtime_config", "target_r", "tinit", "tfinal", "deltaT", "beta1"),
        *("beta2", "orth_reg_weight", "total_step", "token_indices", "trainable_token_indices"),
        *("topk", "num_vectors", "vector_length", "save_only_topk_weights", "vblora_dropout"),
        *("init_vector_bank_bound", "init_logits_std", "theta_d_length", "proj_seed"),
        *("unilora_dropout", "init_theta_d_bound", "save_indices", "pvera_dropout"),
        *("sample_at_inference", "effective_rank", "target_svd_config", "config_A_B"),
        *("config_C", "config_D_E", "frod_dropout", "sparse_rate", "regularization_alpha"),
        *("progressbar", "runtime_offload_base_weight", "hira_dropout", "apply_GS", "miss_dropout"),
        *("mini_r", "gralora_k", "hybrid_r", "gralora_dropout", "delora_lambda", "lambda_pattern"),
        *("oft_block_size", "coft", "eps", "block_share", "use_cayley_neumann"),
        *("num_cayley_neumann_terms", "boft_block_size", "boft_block_num", "boft_dropout"),
        *("boft_n_butterfly_factor", "variant", "group_size", "decomposition_method", "para"),
        *("init_scale", "deft_dropout", "mask_type", "random_seed", "sparsity", "select_top"),
        *("save_precomputed_indices", "n_frequency", "n_frequency_pattern", "scaling"),
        *("block_size", "block_size_pattern", "randlora_alpha", "randlora_dropout", "sparse"),
        *("very_sparse", "u", "weight_tying", "projection_seed", "init_v_bound"),
        *(
            "tinylora_dropout",
            "random_loc_seed",
            "wavelet_family",
            "use_idwt",
            "proportional_parameters",
        ),
    }
)

"""LoRA, rsLoRA and DoRA, and the starts PiSSA and OLoRA."""

import dataclasses
from typing import Any

import numpy as np

from .._names import PREFIX
from ._methods import METHODS, refuse_layer
from ._starts import initial_factors
from ._type import (
    R_PATTERN,
    Adapter,
    Converted,
    MisfitError,
    Module,
    Modules,
    Setting,
    Tensors,
    Type,
    Written,
)

# PEFT's name for the update of a bias, which it multiplies by the scale.
BIAS = "lora_B.bias"
# The variant of `ActivatedLoRA` in jno-lora-routed.
ACTIVATED = "activated-lora"


class LORA(Type):
    """LoRA, rsLoRA, DoRA or aLoRA; PiSSA or OLoRA if that is its start."""

    tensors = (
        r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]"
        r"|lora_magnitude_vector(?:\.weight)?|lora_velora_embed"
    )
    layers = None
    methods = ("lora", "rslora", "dora", ACTIVATED)
    rank = R_PATTERN
    alpha = Setting("lora_alpha", 8, "alpha_pattern")
    settings = (
        "use_rslora use_dora lora_bias init_lora_weights lora_dropout qalora_group_size "
        "corda_config eva_config loftq_config lora_ga_config velora_config megatron_core "
        "trainable_token_indices target_parameters alora_invocation_tokens runtime_config"
    )
    bias = "lora_only"

    def read(self, m: Module) -> Converted:
        variant = "rslora" if m.settings.get("use_rslora") else "lora"
        scale = METHODS[variant].scale_for(m.rank, m.alpha)
        is_dora = bool(m.settings.get("use_dora"))
        if m.rank % m.layout.groups:
            raise MisfitError(f"rank {m.rank} is not a multiple of the {m.layout.groups} groups")
        table = m.layout.pair("lora", m.rank)
        if is_dora:
            variant, table["magnitude"] = "dora", ("lora_magnitude_vector", m.layout.row)
        bias = {BIAS: (m.layout.outputs,)} if m.settings.get("lora_bias") else {}
        tensors = m.take(dict(table.values()) | bias, ignored=("lora_velora_embed",))
        refuse_layer(m.layout, dora=is_dora)
        arrays = dict(zip([*table, *bias], tensors, strict=True))
        if m.settings.get("alora_invocation_tokens"):
            return _activated(m, arrays, scale)
        bias_shift = scale * arrays[BIAS] if bias else None
        product = m.layout.to_matrices(arrays["lora_A"], arrays["lora_B"])
        if product is None:
            raise MisfitError(f"its update mixes the {m.layout.groups} groups, and no kernel does")
        if (initial := initial_factors(m, scale)) is not None:
            name = str(m.settings["init_lora_weights"]).lower().partition("_")[0]
            adapter = m.low_rank(product, scale).with_arrays(**initial)
            return dataclasses.replace(adapter, variant=name, bias_shift=bias_shift)
        adapter = dataclasses.replace(m.low_rank(product, scale, variant), bias_shift=bias_shift)
        if is_dora:
            adapter = adapter.with_arrays(magnitude=arrays["magnitude"].reshape(-1))
        return adapter

    def write(self, adapter: Adapter) -> Written:
        layout, arrays, tokens = adapter.layout, dict(adapter.state), None
        if adapter.variant == ACTIVATED:
            tokens = arrays.pop("settings/tokens").tolist()
            arrays.pop("settings/active")
        A, B = arrays["lora_A"], arrays["lora_B"]
        outputs, inputs = layout.matrix
        if A.shape != (len(A), inputs) or B.shape != (outputs, len(A)):
            raise MisfitError(f"its {B.shape} and {A.shape} do not make {(outputs, inputs)}")
        is_dora = adapter.variant == "dora"
        if unknown := arrays.keys() - {"lora_A", "lora_B", "magnitude", "bias_update"}:
            raise MisfitError(f"PEFT's LoRA has nothing like its {', '.join(sorted(unknown))}")
        refuse_layer(layout, dora=is_dora)
        arrays = {**arrays, "lora_A": layout.for_all_groups(A)}
        rank = len(arrays["lora_A"])
        table = layout.pair("lora", rank)
        if is_dora:
            table["magnitude"] = ("lora_magnitude_vector", layout.row)
        tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in table.items()}
        if "bias_update" in arrays:
            if adapter.scale == 0 or is_dora or layout.kind == "embedding":
                raise MisfitError("PEFT trains biases by LoRA of a scale other than 0")
            tensors[BIAS] = arrays["bias_update"] / np.float32(adapter.scale)
        settings = {"init_lora_weights": True, "lora_dropout": 0.0, "use_dora": is_dora}
        settings["alora_invocation_tokens"] = tokens
        return adapter.written(tensors, settings, rank=rank)

    def common(self, modules: Modules) -> dict[str, Any]:
        return {"lora_bias": any(BIAS in written.tensors for written in modules.values())}

    def shares(self, modules: Modules) -> Tensors:
        """Updates of zero for the layers whose bias has no update, if another layer's bias has."""
        if not self.common(modules)["lora_bias"]:
            return {}
        return {
            f"{PREFIX}{module}.{BIAS}": np.zeros(written.adapter.layout.outputs, np.float32)
            for module, written in modules.items()
            if BIAS not in written.tensors
        }


def _activated(m: Module, arrays: dict[str, np.ndarray], scale: float) -> Converted:
    """aLoRA. PEFT's invocation is in the configuration."""
    if m.layout.kind != "linear" or arrays.keys() != {"lora_A", "lora_B"}:
        raise MisfitError("PEFT's aLoRA is plain LoRA on linear layers")
    if initial_factors(m, scale) is not None:
        raise MisfitError("PiSSA and OLoRA change the weight for tokens before the invocation too")
    tokens = np.asarray(m.settings["alora_invocation_tokens"], np.int32)
    state = {**arrays, "settings/tokens": tokens, "settings/active": np.zeros((), np.float32)}
    return Converted(ACTIVATED, m.rank, scale * m.rank, state)

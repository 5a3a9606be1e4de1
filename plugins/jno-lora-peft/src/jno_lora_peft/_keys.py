"""The names of tensors in a PEFT file: the module of each, and its part in it."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

# In front of every name: the two levels that PEFT puts around a model.
PREFIX = "base_model.model."
# The matrices that the layers of a VeRA adapter share.
SHARED = ("base_model.vera_A", "base_model.vera_B")

_PARTS = {
    "LORA": r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
    r"|lora_velora_embed",
    "ADALORA": "lora_[ABE]",
    "LOHA": "hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)",
    "LOKR": "lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2)",
    "VERA": "vera_lambda_[bd]",
    "IA3": "ia3_l",
    "LN_TUNING": "(?!)",  # its tensors are those of plain modules
}
# Where PEFT keeps the module that it wrapped, or the copy of it that was trained.
_WRAPPED = re.compile(r"(^|\.)(base_layer|modules_to_save|ln_tuning_layers)(?=\.)")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file by the names of modules, which are those of the model without PEFT.

    - `adapters`: those of the adapters: `{module: {part: tensor}}`, such as `lora_A.weight`.
    - `plain`: whole arrays of modules: `{module: {name: tensor}}`, such as `weight`.
    - `shared`: those that no module has alone.
    """

    adapters: Mapping[str, Mapping[str, np.ndarray]]
    plain: Mapping[str, Mapping[str, np.ndarray]]
    shared: Mapping[str, np.ndarray]


def by_module(tensors: Mapping[str, np.ndarray], peft_type: str) -> Tensors:
    """The tensors of a file, sorted by module."""
    part_of_adapter = re.compile(rf"(?:(.*)\.)?({_PARTS[peft_type]})")
    adapters: dict[str, dict[str, np.ndarray]] = {}
    plain: dict[str, dict[str, np.ndarray]] = {}
    shared: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        if key in SHARED:
            shared[key] = tensor
            continue
        name = key.removeprefix(PREFIX)
        found = part_of_adapter.fullmatch(name)
        if found:
            part = found[2].removesuffix(".weight") if "magnitude" in found[2] else found[2]
            adapters.setdefault(found[1] or "", {})[part] = tensor
        elif ".original_module." not in f".{name}":  # which PEFT keeps beside what was trained
            module, _, array = _WRAPPED.sub("", name).removeprefix(".").rpartition(".")
            plain.setdefault(module, {})[array] = tensor
    return Tensors(adapters, plain, shared)

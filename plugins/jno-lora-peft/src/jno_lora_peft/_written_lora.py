"""LoRA, rsLoRA and DoRA as PEFT has them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._files import PREFIX
from ._same import Adapter, File
from ._updates import MisfitError, refuse_layer

# PEFT's name for the update of a bias, which it multiplies by the scale.
BIAS = "lora_B.bias"


def to_lora(adapter: Adapter) -> File:
    """An adapter with the factors of LoRA, and a magnitude if it is DoRA."""
    layout, arrays = adapter.layout, adapter.state
    A, B = arrays["lora_A"], arrays["lora_B"]
    outputs, inputs = layout.matrix
    if A.shape != (len(A), inputs) or B.shape != (outputs, len(A)):
        raise MisfitError(
            f"its factors {B.shape} and {A.shape} do not make the ({outputs}, {inputs}) of "
            "PEFT's weight for this layer"
        )
    is_dora = adapter.variant == "dora"
    if left := arrays.keys() - {"lora_A", "lora_B", "magnitude", "bias_update"}:
        raise MisfitError(f"PEFT's LoRA has nothing like its {', '.join(sorted(left))}")
    refuse_layer(layout, dora=is_dora)
    arrays = {**arrays, "lora_A": layout.for_all_groups(A)}
    rank = len(arrays["lora_A"])
    table = layout.pair("lora", rank)
    if is_dora:
        table["magnitude"] = ("lora_magnitude_vector", layout.row)
    tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in table.items()}
    if "bias_update" in arrays:
        if adapter.scale == 0 or is_dora or layout.kind == "embedding":
            raise MisfitError("PEFT trains biases by LoRA of a scale that is not 0 (`lora_bias`)")
        tensors[BIAS] = arrays["bias_update"] / np.float32(adapter.scale)
    settings = {"init_lora_weights": True, "lora_dropout": 0.0, "use_dora": is_dora}
    return File(rank, tensors, settings)


def lora_bias(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that all layers have an update of their bias."""
    return {"lora_bias": any(BIAS in one.tensors for one in modules.values())}


def no_biases(modules: Mapping[str, Any]) -> dict[str, Any]:
    """Updates of zero for the layers without one, if others have one."""
    if not lora_bias(modules)["lora_bias"]:
        return {}
    return {
        f"{PREFIX}{module}.{BIAS}": np.zeros(one.layout.outputs, np.float32)
        for module, one in modules.items()
        if BIAS not in one.tensors
    }

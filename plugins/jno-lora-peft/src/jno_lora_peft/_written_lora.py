"""LoRA, rsLoRA and DoRA as PEFT has them."""

from ._same import Adapter, File
from ._updates import MisfitError, refuse_layer


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
    refuse_layer(layout, dora=is_dora)
    arrays = {**arrays, "lora_A": layout.for_all_groups(A)}
    rank = len(arrays["lora_A"])
    table = layout.pair("lora", rank)
    if is_dora:
        table["magnitude"] = ("lora_magnitude_vector", layout.row)
    tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in table.items()}
    settings = {"init_lora_weights": True, "lora_dropout": 0.0, "use_dora": is_dora}
    return File(rank, tensors, settings)

"""AdaLoRA: `s B diag(E) A`. The components that AdaLoRA has pruned are not in the file."""

import dataclasses

from ._conversion import Adapter, Converted, Module, Written
from ._same_arrays import SameArrays, Tensor
from ._type import Setting, Type

_ARRAYS = SameArrays(
    "adalora",
    {
        "lora_A": Tensor("lora_A", "r in"),
        "lora_B": Tensor("lora_B", "out r"),
        "lora_E": Tensor("lora_E", "r 1 -> r"),
    },
)


def _read(m: Module) -> Converted:
    """AdaLoRA; LoRA if no component is left, or more components than fit the layer."""
    A = m.tensors.get("lora_A")
    left = m.rank if A is None or A.ndim == 0 else len(A)
    outputs, inputs = m.layout.matrix
    scale = (m.alpha if m.alpha > 0 else m.rank) / (m.rank + 1e-5)
    if A is not None and A.ndim == 2 and 0 < left <= min(outputs, inputs):
        adapter = _ARRAYS.read(dataclasses.replace(m, rank=left))
        return dataclasses.replace(adapter, alpha=scale * left)
    m.check({"lora_A": (left, inputs), "lora_B": (outputs, left), "lora_E": (left, 1)})
    return m.low_rank((m.tensors["lora_E"] * m.tensors["lora_A"], m.tensors["lora_B"]), scale)


def _write(adapter: Adapter) -> Written:
    """PEFT divides by the rank and 1e-5."""
    r = adapter.rank
    schedule = {"target_r": r, "total_step": 1, "tinit": 0, "tfinal": 0}
    return adapter.written(_ARRAYS.arrays(adapter), schedule, alpha=adapter.alpha * (r + 1e-5) / r)


ADALORA = Type(
    "ADALORA",
    held="AdaLoRA, with the components that are left",
    tensors="lora_[ABE]",
    reader=_read,
    writer=_write,
    rank=Setting("init_r", 12),
    alpha=Setting("lora_alpha", 8),
    settings="target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step",
    bias="lora_only",
)

"""Quantised frozen weights of Equinox models, beside which adapters of jno-lora train (QLoRA)."""

from ._array import QuantizedArray
from ._plan import QuantizationPlan, QuantizationRow
from ._quantize import dequantize, plan_quantization, quantize

__all__ = [
    "QuantizationPlan",
    "QuantizationRow",
    "QuantizedArray",
    "dequantize",
    "plan_quantization",
    "quantize",
]

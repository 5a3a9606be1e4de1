"""Quantised frozen weights of Equinox models, beside which adapters of jno-lora train (QLoRA)."""

from ._array import QuantizedArray
from ._files import load_quantized, save_quantized
from ._plan import QuantizationPlan, QuantizationRow
from ._quantize import dequantize, plan_quantization, quantize

__all__ = [
    "QuantizationPlan",
    "QuantizationRow",
    "QuantizedArray",
    "dequantize",
    "load_quantized",
    "plan_quantization",
    "quantize",
    "save_quantized",
]

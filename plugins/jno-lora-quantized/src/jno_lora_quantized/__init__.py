"""Quantised frozen weights for Equinox models, to train jno-lora adapters beside (QLoRA)."""

from ._array import QuantizedArray
from ._errors import QuantizationError, QuantizationErrors, quantization_errors
from ._files import load_quantized, save_quantized
from ._loftq import loftq
from ._plan import QuantizationPlan, QuantizationRow, plan_quantization
from ._quantize import dequantize, quantize

__all__ = [
    "QuantizationError",
    "QuantizationErrors",
    "QuantizationPlan",
    "QuantizationRow",
    "QuantizedArray",
    "dequantize",
    "load_quantized",
    "loftq",
    "plan_quantization",
    "quantization_errors",
    "quantize",
    "save_quantized",
]

"""The adapter zoo of jno-lora: LoRA and its relatives for linear and convolution layers.

The adapters are found through the registry (`net.lora(wrapper="dora")`, `from jno.lora import
DoRALinear`). The methods, the layer kinds and their tools are exported for plugins: a plugin can
add a method for every kind of layer, or a kind of layer for every method.
"""

# ruff: noqa: F403
from . import adapters, methods
from ._adapters_for import adapters_for
from ._arrays import (
    cast_like,
    compute_dtype,
    describe,
    dtype_of,
    in_compute_dtype,
    is_float_array,
    mixed,
    rotated,
    scaled,
    sharded_over,
)
from ._bibtex import bibtex_of
from ._layer_kind import LayerKind, MeshAxes, unchanged
from ._method import Method, Scaled, adapter_dtype_for
from .adapters import *
from .layers import (
    ConvLayer,
    ConvTransposeLayer,
    InNormLayer,
    KernelLayer,
    LinearLayer,
)
from .methods import *
from .plugin import adapters_defined_in

__all__ = [
    "ConvLayer",
    "ConvTransposeLayer",
    "InNormLayer",
    "KernelLayer",
    "LayerKind",
    "LinearLayer",
    "MeshAxes",
    "Method",
    "Scaled",
    "adapter_dtype_for",
    "adapters_defined_in",
    "adapters_for",
    "bibtex_of",
    "cast_like",
    "compute_dtype",
    "describe",
    "dtype_of",
    "in_compute_dtype",
    "is_float_array",
    "mixed",
    "rotated",
    "scaled",
    "sharded_over",
    "unchanged",
]
__all__ += adapters.__all__
__all__ += methods.__all__

"""The adapter zoo of jno-lora: eleven methods for linear and convolution layers.

The adapters are found through the registry (`net.lora(wrapper="dora")`, `from jno.lora import
DoRALinear`). What is exported here beside them, the methods and the layer kinds, is for plugins
that add a method for every kind of layer, or a kind of layer for every method.
"""

from ._layer_kind import LayerKind, MeshAxes, at_least_float32, is_float_array, sharded_over
from ._method import Method
from .adapters import (
    DoRAConv,
    DoRALinear,
    IA3Conv,
    IA3Linear,
    LoKrConv,
    LoKrLinear,
    LoRAConv,
    LoRAFAConv,
    LoRAFALinear,
    LoRALinear,
    LoRAXSConv,
    LoRAXSLinear,
    MiLoRAConv,
    MiLoRALinear,
    OFTConv,
    OFTLinear,
    PiSSAConv,
    PiSSALinear,
    VeRAConv,
    VeRALinear,
    rsLoRAConv,
    rsLoRALinear,
)
from .layers import ConvLayer, LinearLayer, VectorLayer
from .methods import IA3, OFT, DoRA, LoKr, LoRA, LoRAFA, LoRAXS, MiLoRA, PiSSA, VeRA, rsLoRA

__all__ = [
    "IA3",
    "OFT",
    "ConvLayer",
    "DoRA",
    "DoRAConv",
    "DoRALinear",
    "IA3Conv",
    "IA3Linear",
    "LayerKind",
    "LinearLayer",
    "LoKr",
    "LoKrConv",
    "LoKrLinear",
    "LoRA",
    "LoRAConv",
    "LoRAFA",
    "LoRAFAConv",
    "LoRAFALinear",
    "LoRALinear",
    "LoRAXS",
    "LoRAXSConv",
    "LoRAXSLinear",
    "MeshAxes",
    "Method",
    "MiLoRA",
    "MiLoRAConv",
    "MiLoRALinear",
    "OFTConv",
    "OFTLinear",
    "PiSSA",
    "PiSSAConv",
    "PiSSALinear",
    "VeRA",
    "VeRAConv",
    "VeRALinear",
    "VectorLayer",
    "at_least_float32",
    "is_float_array",
    "rsLoRA",
    "rsLoRAConv",
    "rsLoRALinear",
    "sharded_over",
]

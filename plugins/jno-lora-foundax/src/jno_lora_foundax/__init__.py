"""Adapters for the models of foundax: channel-last convolutions, MPP's linear layers, FNOs.

They are found by name (`net.lora(wrapper="LoRASpectral")`), by variant (`wrapper="lora"`) and by
`wrapper="auto"`. Kernels whose layout nobody declares are refused; `ChannelLastKernelLayer` and
`SpectralAdapter.mode_weights` are where another library's are declared.
"""

# ruff: noqa: F403
from . import adapters
from ._mode_weights import ModeWeights
from .adapters import *
from .bottleneck import (
    Bottleneck,
    BottleneckChannelLastConv,
    BottleneckConv,
    BottleneckLinear,
)
from .layers import (
    ChannelLastConvLayer,
    ChannelLastConvTransposeLayer,
    ChannelLastKernelLayer,
    SubsampledLinearLayer,
)
from .spectral import (
    CPSpectral,
    GainSpectral,
    LoRASpectral,
    SpectralAdapter,
    SpectralLowRank,
    rsLoRASpectral,
)

__all__ = [
    "Bottleneck",
    "BottleneckChannelLastConv",
    "BottleneckConv",
    "BottleneckLinear",
    "CPSpectral",
    "ChannelLastConvLayer",
    "ChannelLastConvTransposeLayer",
    "ChannelLastKernelLayer",
    "GainSpectral",
    "LoRASpectral",
    "ModeWeights",
    "SpectralAdapter",
    "SpectralLowRank",
    "SubsampledLinearLayer",
    "rsLoRASpectral",
]
__all__ += adapters.__all__

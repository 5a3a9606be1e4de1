"""Adapters for the models of foundax: channel-last convolutions, MPP's linear layers, FNOs.

They are found by name (`net.lora(wrapper="LoRASpectral")`), by variant (`wrapper="lora"`) and by
`wrapper="auto"`. Kernels of unknown layout are refused, unless a subclass of
`ChannelLastKernelLayer` or `SpectralAdapter.mode_weights` declares them.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from jno_lora_zoo import made_when_named

from . import adapters
from ._mode_weights import ModeWeights
from ._spectral_adapter import SpectralAdapter
from .bottleneck import Bottleneck, BottleneckChannelLastConv, BottleneckConv, BottleneckLinear
from .layers import (
    ChannelLastConvLayer,
    ChannelLastConvTransposeLayer,
    ChannelLastKernelLayer,
    SubsampledLinearLayer,
)
from .spectral import LoRASpectral, SpectralLowRank, rsLoRASpectral
from .spectral_cp import CPSpectral
from .spectral_gain import GainSpectral

if TYPE_CHECKING:
    from .adapters import *

__getattr__, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
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

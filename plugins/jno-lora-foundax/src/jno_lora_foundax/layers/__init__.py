"""The layer kinds of foundax."""

from .channel_last import (
    ChannelLastConvLayer,
    ChannelLastConvTransposeLayer,
    ChannelLastKernelLayer,
)
from .subsampled_linear import SubsampledLinearLayer

__all__ = [
    "ChannelLastConvLayer",
    "ChannelLastConvTransposeLayer",
    "ChannelLastKernelLayer",
    "SubsampledLinearLayer",
]

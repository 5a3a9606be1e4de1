"""The layer kinds of foundax."""

from .channel_last import ChannelLastKernelLayer
from .conv import ChannelLastConvLayer
from .conv_transpose import ChannelLastConvTransposeLayer
from .subsampled_linear import SubsampledLinearLayer

__all__ = [
    "ChannelLastConvLayer",
    "ChannelLastConvTransposeLayer",
    "ChannelLastKernelLayer",
    "SubsampledLinearLayer",
]

"""The layer kinds of the zoo."""

from .conv import ConvLayer, ConvTransposeLayer
from .in_norm import InNormLayer
from .kernel import KernelLayer
from .linear import LinearLayer

__all__ = ["ConvLayer", "ConvTransposeLayer", "InNormLayer", "KernelLayer", "LinearLayer"]

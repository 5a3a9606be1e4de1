"""The layer kinds of the zoo."""

from .conv import ConvLayer
from .conv_transpose import ConvTransposeLayer
from .in_norm import InNormLayer, norms_rows
from .kernel import KernelLayer
from .linear import LinearLayer

__all__ = [
    "ConvLayer",
    "ConvTransposeLayer",
    "InNormLayer",
    "KernelLayer",
    "LinearLayer",
    "norms_rows",
]

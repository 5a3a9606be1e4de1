"""The layer kinds of the zoo."""

from .conv import ConvLayer
from .linear import LinearLayer

__all__ = ["ConvLayer", "LinearLayer"]

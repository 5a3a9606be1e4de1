"""The layer kinds of the zoo."""

from .conv import ConvLayer
from .linear import LinearLayer
from .vector import VectorLayer

__all__ = ["ConvLayer", "LinearLayer", "VectorLayer"]

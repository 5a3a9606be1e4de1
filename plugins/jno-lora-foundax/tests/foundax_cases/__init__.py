"""What these tests share: foundax's layers, and how they can be called under our regime."""

from .layers import CONV_TRANSPOSES, CONVS, SPECTRAL, SUBSAMPLED, Layer
from .tools import check_everything, filled, perturbed, run, same_form

__all__ = [
    "CONVS",
    "CONV_TRANSPOSES",
    "SPECTRAL",
    "SUBSAMPLED",
    "Layer",
    "check_everything",
    "filled",
    "perturbed",
    "run",
    "same_form",
]

"""Shared parts of these tests: foundax's layers, how to call them under our regime, and in NumPy.

`laws` and `maps` are oracles, written from the papers: they use nothing of ours. The laws of the
methods are those of `zoo_cases`.
"""

from .layers import CONV_TRANSPOSES, CONVS, SPECTRAL, SUBSAMPLED, Layer
from .tools import check_everything, filled, foundax_regime, perturbed, run, same_form

__all__ = [
    "CONVS",
    "CONV_TRANSPOSES",
    "SPECTRAL",
    "SUBSAMPLED",
    "Layer",
    "check_everything",
    "filled",
    "foundax_regime",
    "perturbed",
    "run",
    "same_form",
]

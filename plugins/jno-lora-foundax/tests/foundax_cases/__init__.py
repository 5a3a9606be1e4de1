"""What these tests share: foundax's layers, how they can be called under our regime, and in NumPy.

`laws` and `maps` are the oracles, written from the papers: they use nothing of ours.
"""

from .double import assert_close, central_difference, doubled
from .laws import METHODS
from .layers import CONV_TRANSPOSES, CONVS, SPECTRAL, SUBSAMPLED, Layer
from .tools import check_everything, filled, perturbed, run, same_form

__all__ = [
    "CONVS",
    "CONV_TRANSPOSES",
    "METHODS",
    "SPECTRAL",
    "SUBSAMPLED",
    "Layer",
    "assert_close",
    "central_difference",
    "check_everything",
    "doubled",
    "filled",
    "perturbed",
    "run",
    "same_form",
]

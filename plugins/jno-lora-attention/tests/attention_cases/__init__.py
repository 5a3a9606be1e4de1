"""What these tests share: attention in NumPy, an adapter in training, and comparisons."""

from .reference import (
    LETTERS,
    Prefix,
    multihead,
    projections_of,
    scaled_projections,
    with_low_rank,
)
from .tools import assert_close, flat, perturbed, random_layer

__all__ = [
    "LETTERS",
    "Prefix",
    "assert_close",
    "flat",
    "multihead",
    "perturbed",
    "projections_of",
    "random_layer",
    "scaled_projections",
    "with_low_rank",
]

"""Shared parts of these tests: attention in NumPy, random layers, and an adapter in training."""

from .reference import (
    LETTERS,
    Prefix,
    multihead,
    projections_of,
    scaled_projections,
    with_low_rank,
)
from .tools import flat, perturbed, random_layer

__all__ = [
    "LETTERS",
    "Prefix",
    "flat",
    "multihead",
    "perturbed",
    "projections_of",
    "random_layer",
    "scaled_projections",
    "with_low_rank",
]

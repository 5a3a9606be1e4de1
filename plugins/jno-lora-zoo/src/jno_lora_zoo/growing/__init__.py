"""Grow a model: train new outputs, inputs and tokens around frozen old weights."""

from ._grow import grow as grow, load_grown as load_grown
from .adapters import (
    Grown as Grown,
    GrownConv as GrownConv,
    GrownEmbedding as GrownEmbedding,
    GrownLinear as GrownLinear,
)

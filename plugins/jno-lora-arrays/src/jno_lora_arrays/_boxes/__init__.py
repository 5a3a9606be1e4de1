"""Boxes around arrays: their axes, the kind of layer that they are, and how a model gets them."""

# ruff: noqa: F401
from ._array_layer import ArrayLayer
from ._axes import IN_LAYER, NOT_A_PARAMETER, ArrayAxes, InferredAxes
from ._box import INPUTS, DeclaredArray, is_declared, unadapted
from ._declare import declare, plain

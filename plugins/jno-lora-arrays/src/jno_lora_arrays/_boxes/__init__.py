"""Boxes around arrays: their axes, the kind of layer that they are, and how a model gets them."""

from ._array_layer import ArrayLayer as ArrayLayer
from ._axes import (
    IN_LAYER as IN_LAYER,
    NOT_A_PARAMETER as NOT_A_PARAMETER,
    ArrayAxes as ArrayAxes,
    InferredAxes as InferredAxes,
)
from ._box import (
    INPUTS as INPUTS,
    DeclaredArray as DeclaredArray,
    is_declared as is_declared,
    unadapted as unadapted,
)
from ._declare import declare as declare, plain as plain

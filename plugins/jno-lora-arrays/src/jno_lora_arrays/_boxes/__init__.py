"""Boxes around arrays: their axes, the kind of layer that they are, and how a model gets them."""

from ._axes import (
    IN_LAYER as IN_LAYER,
    NOT_A_PARAMETER as NOT_A_PARAMETER,
    ArrayAxes as ArrayAxes,
    InferredAxes as InferredAxes,
)
from ._box import (
    INPUTS as INPUTS,
    ArrayLayer as ArrayLayer,
    DeclaredArray as DeclaredArray,
    axes_with as axes_with,
    is_declared as is_declared,
    unadapted as unadapted,
)
from ._declare import declare as declare, plain as plain

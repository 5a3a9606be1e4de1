"""The zoo's adapters: every method on every kind of layer, with a line for each kind.

`adapters.pyi` beside this file lists the classes for type checkers.
"""

from ._adapters_for import adapters_for, made_when_named
from .layers import (
    ConvLayer,
    ConvTransposeLayer,
    EmbeddingLayer,
    InNormLayer,
    LinearLayer,
    RecurrentLayer,
)
from .methods import LoRA

ADAPTERS = (
    adapters_for(LinearLayer, __name__)
    | adapters_for(ConvLayer, __name__)
    # Not among the defaults, so `wrapper=` must give their name, their variant or "auto".
    | adapters_for(ConvTransposeLayer, __name__, auto=LoRA)
    # Nor are these. Their variants name the layer kind, so that the method's variant excludes it.
    | adapters_for(InNormLayer, __name__, variant="{}-in-norm")
    | adapters_for(EmbeddingLayer, __name__, auto=LoRA, variant="{}-embedding")
    | adapters_for(RecurrentLayer, __name__, auto=LoRA, variant="{}-recurrent")
)
__getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
__all__ = list(ADAPTERS)  # pyright: ignore[reportUnsupportedDunderAll]

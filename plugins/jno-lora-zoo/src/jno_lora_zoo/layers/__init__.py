"""The layer kinds of the zoo, in one table."""

from typing import Any

from .._layer_kind import LayerKind
from .conv import ConvLayer, ConvTransposeLayer
from .embedding import EmbeddingLayer
from .in_norm import InNormLayer
from .kernel import KernelLayer
from .linear import LinearLayer
from .recurrent import RecurrentLayer

# No layer is of two of these kinds. `LayerKind.weight_axes` says how each stores its weight.
LAYER_KINDS: tuple[type[LayerKind], ...] = (
    LinearLayer,
    ConvLayer,
    ConvTransposeLayer,
    EmbeddingLayer,
    RecurrentLayer,
    InNormLayer,
)


def kind_of(layer: Any) -> type[LayerKind] | None:
    """The kind in `LAYER_KINDS` that `layer` is of, or `None`."""
    return next((kind for kind in LAYER_KINDS if kind.applies_to(layer)), None)


__all__ = [
    "LAYER_KINDS",
    "ConvLayer",
    "ConvTransposeLayer",
    "EmbeddingLayer",
    "InNormLayer",
    "KernelLayer",
    "LinearLayer",
    "RecurrentLayer",
    "kind_of",
]

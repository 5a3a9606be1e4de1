"""The layer kinds of the zoo, in one table."""

from .._layer_kind import LayerKind
from .conv import ConvLayer as ConvLayer, ConvTransposeLayer as ConvTransposeLayer
from .embedding import EmbeddingLayer as EmbeddingLayer
from .in_norm import InNormLayer as InNormLayer
from .linear import LinearLayer as LinearLayer
from .recurrent import RecurrentLayer as RecurrentLayer

# A layer belongs to at most one of these kinds. `LayerKind.weight_axes` is the weight's layout.
LAYER_KINDS: tuple[type[LayerKind], ...] = (
    LinearLayer,
    ConvLayer,
    ConvTransposeLayer,
    EmbeddingLayer,
    RecurrentLayer,
    InNormLayer,
)

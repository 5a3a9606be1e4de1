"""The layer kinds of the zoo, in one table."""

from .._layer_kind import LayerKind
from .conv import ConvLayer, ConvTransposeLayer
from .embedding import EmbeddingLayer
from .in_norm import InNormLayer
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

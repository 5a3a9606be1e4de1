"""The part that layers share whose features are plain vectors."""

from jaxtyping import Array, Float

from .._layer_kind import LayerKind


class VectorLayer(LayerKind):
    """A layer whose output, and whose rank axis, are vectors. The input may be anything."""

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        return h @ B.T.astype(h.dtype)

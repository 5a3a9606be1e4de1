"""What the layers have in common whose features are plain vectors."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layer_kind import LayerKind, scaled


class VectorLayer(LayerKind):
    """A layer whose output, and whose rank axis, are vectors. The input may be anything."""

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        return h @ B.T.astype(h.dtype)

    def mix(self, h: Array, R: Float[Array, "r r"]) -> Array:
        return h @ R.T.astype(h.dtype)

    def scale_rank(self, h: Array, d: Float[Array, " r"]) -> Array:
        return scaled(h, d)

    def scale_output(self, y: Array, v: Float[Array, " out"]) -> Array:
        return scaled(y, v)

    def rotate_output(self, y: Array, R: Float[Array, "blocks r r"]) -> Array:
        blocks, r, _ = R.shape
        padded = jnp.pad(y, (0, blocks * r - y.size)).reshape(blocks, r)
        return jnp.einsum("kij,kj->ki", R.astype(y.dtype), padded).reshape(-1)[: y.size]

    def rotates_output(self, block: int) -> bool:
        return True

"""`nequix.model.Linear`: the layers of the radial networks of nequix."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jno_lora_zoo import Map, MatrixLayer, describe, is_float_array, unchanged

from ._classes import NequixLinear


class RadialLayer(MatrixLayer):
    """`nequix.model.Linear`: a layer with a weight `(in, out)` in its field `weights`.

    The layers of a radial network read only distances, so every change keeps the equivariance.
    """

    weight_axes = "io"
    weight_field = "weights"

    @classmethod
    def fits(cls, leaf: object) -> bool:
        if not isinstance(leaf, NequixLinear) or not is_float_array(leaf.weights):
            return False
        return leaf.weights.ndim >= 2 and 0 not in leaf.weights.shape

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, NequixLinear):
            return None
        return f"its weights are {describe(leaf.weights)}, not (in, out)"

    def computes(self, x: Any) -> bool:
        is_plain = (type(self.base).__module__, type(self.base).__name__) in NequixLinear.names
        return is_plain and jnp.ndim(x) == 1 and x.dtype == self.base.weights.dtype

    def reads_features(self) -> bool:
        return True

    def product(self, x: Array, before: Map = unchanged) -> Array:
        return before(x) @ self.base.weights

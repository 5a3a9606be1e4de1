"""The part that layers share whose features are plain vectors."""

import abc
from typing import Any

from jaxtyping import Array

from .._arrays import mixed
from .._layer_kind import Factor, LayerKind, Map, unchanged


class VectorLayer(LayerKind):
    """A layer whose output, and whose rank axis, are vectors. The input may be anything."""

    @abc.abstractmethod
    def down(self, x: Any, A: Factor) -> Array:
        """`A x`: the first half of a low-rank product."""

    def low_rank(
        self, x: Any, A: Factor, B: Factor, between: Map = unchanged, after: Map = unchanged
    ) -> Array:
        # The layer's own product first: XLA keeps to the order, and holds less at once.
        y = self.product(x)
        return y + after(mixed(between(self.down(x, A)), B))

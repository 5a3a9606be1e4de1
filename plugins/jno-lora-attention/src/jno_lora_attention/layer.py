"""Multi-head attention as a layer with four matrices, its projections."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
from jaxtyping import Array

from jno_lora_zoo import LinearLayer, MatricesLayer, is_float_array

# The letters of `projections=`, in the order of the layer's fields.
FIELDS = {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "output_proj"}


class AttentionLayer(MatricesLayer):
    """`eqx.nn.MultiheadAttention`, or a subclass of it, whose matrices are its four projections.

    They must be plain `eqx.nn.Linear` layers. A layer is refused if a projection carries an adapter
    already, or shares its weight. An adapter chooses some of the projections, by their letters.
    """

    adapts_all = False

    @classmethod
    def fits(cls, leaf: object) -> bool:
        return is_plain_attention(leaf)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return LinearLayer.stack_ndim(leaf.query_proj)

    @classmethod
    def linear_layers(cls, layer: Any) -> dict[str, eqx.nn.Linear]:
        return {letter: getattr(layer, field) for letter, field in FIELDS.items()}

    @classmethod
    def with_linear_layers(
        cls, base: Any, linears: Mapping[str, Callable[[Array], Array]]
    ) -> eqx.nn.MultiheadAttention:
        fields = [FIELDS[letter] for letter in linears]
        new = list(linears.values())
        return eqx.tree_at(lambda m: [getattr(m, field) for field in fields], base, new)

    def computes(self, *args: Any, **kwargs: Any) -> bool:
        # A subclass may read the weights in another way.
        return type(self.base) is eqx.nn.MultiheadAttention

    def call(
        self, products: Mapping[str, Callable[[Array], Array]], *args: Any, **kwargs: Any
    ) -> Array:
        return self.with_linear_layers(self.base, products)(*args, **kwargs)


def is_plain_attention(leaf: object) -> bool:
    """Whether `leaf` is multi-head attention with four plain linear projections."""
    if not isinstance(leaf, eqx.nn.MultiheadAttention):
        return False
    projections = [getattr(leaf, field, None) for field in FIELDS.values()]
    if not all(map(_is_plain, projections)):
        return False
    return len({LinearLayer.stack_ndim(projection) for projection in projections}) == 1


def _is_plain(projection: object) -> bool:
    return (
        type(projection) is eqx.nn.Linear
        and LinearLayer.fits(projection)
        and (projection.bias is None or is_float_array(projection.bias))
    )

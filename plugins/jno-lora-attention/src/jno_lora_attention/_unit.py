"""The base class of the three adapters: which attention layers they take."""

from typing import Any

import equinox as eqx

from jno.lora import LoRAWrapper
from jno_lora_zoo import LinearLayer, is_float_array

# The letters of `projections=`, in the order of the layer's fields.
FIELDS = {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "output_proj"}


class AttentionUnit(LoRAWrapper):
    """An adapter around a whole `eqx.nn.MultiheadAttention`, or a subclass of it.

    The four projections must be plain `eqx.nn.Linear` layers. A layer is refused if a projection
    carries an adapter already, or shares its weight.
    """

    base: eqx.nn.MultiheadAttention
    rank: int = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        """Whether `leaf` is multi-head attention with four plain linear projections."""
        if not isinstance(leaf, eqx.nn.MultiheadAttention):
            return False
        projections: list[Any] = [getattr(leaf, field, None) for field in FIELDS.values()]
        if not all(_is_plain(projection) for projection in projections):
            return False
        return len({projection.weight.ndim for projection in projections}) == 1

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.query_proj.weight.ndim - 2


def _is_plain(projection: Any) -> bool:
    is_linear = type(projection) is eqx.nn.Linear and LinearLayer.fits(projection)
    return is_linear and (projection.bias is None or is_float_array(projection.bias))

"""Adapters for `eqx.nn.MultiheadAttention` as one unit: LoRA, IA3 and prefixes.

They are found by name (`net.lora(wrapper="lora-attention")`) or passed as classes. They are not
part of `wrapper="auto"`, because an adapter around the whole unit would hide its linear layers from
the default adapters.
"""

from .layer import AttentionLayer
from .prefix import PrefixAttention
from .projections import IA3Attention, LoRAAttention

__all__ = ["AttentionLayer", "IA3Attention", "LoRAAttention", "PrefixAttention"]

"""Adapters for embedding tables: the methods of the zoo on one more kind of layer.

They are found by name (`net.lora(wrapper="LoRAEmbedding")`), by variant (`"lora-embedding"`), or
passed as classes. A further method takes one line:
`class MyMethodEmbedding(MyMethod, EmbeddingLayer): ...`.
"""

# ruff: noqa: F403
from jno_lora_zoo import EmbeddingLayer

from . import adapters
from .adapters import *

__all__ = ["EmbeddingLayer"]
__all__ += adapters.__all__

"""Adapters for embedding tables: the methods of the zoo on one more kind of layer.

They are found by name (`net.lora(wrapper="LoRAEmbedding")`) or passed as classes. A further method
takes one line: `class MyMethodEmbedding(MyMethod, EmbeddingLayer): ...`.
"""

from .adapters import (
    DoRAEmbedding,
    IA3Embedding,
    LoKrEmbedding,
    LoRAEmbedding,
    LoRAFAEmbedding,
    LoRAXSEmbedding,
    MiLoRAEmbedding,
    OFTEmbedding,
    PiSSAEmbedding,
    VeRAEmbedding,
    rsLoRAEmbedding,
)
from .layer import EmbeddingLayer

__all__ = [
    "DoRAEmbedding",
    "EmbeddingLayer",
    "IA3Embedding",
    "LoKrEmbedding",
    "LoRAEmbedding",
    "LoRAFAEmbedding",
    "LoRAXSEmbedding",
    "MiLoRAEmbedding",
    "OFTEmbedding",
    "PiSSAEmbedding",
    "VeRAEmbedding",
    "rsLoRAEmbedding",
]

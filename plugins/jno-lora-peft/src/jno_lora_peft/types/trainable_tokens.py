"""Trainable tokens: rows of an embedding. The type has no adapter."""

from ._type import Type, no_adapter

TRAINABLE_TOKENS = Type(
    "TRAINABLE_TOKENS",
    held="the rows of the embedding replaced",
    tensors="(?!)",
    reader=no_adapter,
    settings="token_indices",
)

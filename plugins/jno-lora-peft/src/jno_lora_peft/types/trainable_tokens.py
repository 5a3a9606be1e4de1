"""Trainable tokens: rows of an embedding."""

from ._type import Type

TRAINABLE_TOKENS = Type(
    "TRAINABLE_TOKENS", held="the rows of the embedding replaced", settings="token_indices"
)

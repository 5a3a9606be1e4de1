"""Trainable tokens: rows of an embedding."""

from ._type import Type


class TRAINABLE_TOKENS(Type):
    """the rows of the embedding replaced."""

    settings = "token_indices"

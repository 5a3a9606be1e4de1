"""LN tuning: whole modules, such as norms."""

from ._type import Type


class LN_TUNING(Type):
    """the arrays replaced."""

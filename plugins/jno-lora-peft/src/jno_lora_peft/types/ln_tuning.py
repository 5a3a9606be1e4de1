"""LN tuning: whole modules, such as norms."""

from ._type import Type

LN_TUNING = Type("LN_TUNING", held="the arrays replaced")

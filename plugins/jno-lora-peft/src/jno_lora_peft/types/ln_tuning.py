"""LN tuning: whole modules, such as norms. The type has no adapter."""

from ._type import Type, no_adapter

LN_TUNING = Type("LN_TUNING", held="the arrays replaced", tensors="(?!)", reader=no_adapter)

"""Adapters that are functions of a parameter: one set of arrays serves every value."""

from ._bases import Basis, Function, Indexed, Network, Powers
from ._conditional import Conditional, at, merge
from ._fit import Fitted, fit

__all__ = [
    "Basis",
    "Conditional",
    "Fitted",
    "Function",
    "Indexed",
    "Network",
    "Powers",
    "at",
    "fit",
    "merge",
]

"""Adapters that are functions of a parameter: one set of arrays serves every value."""

from ._bases import Basis, Function, Indexed, Network, Powers
from ._conditional import Conditional, at, merge
from ._files import load_conditional, save_conditional

__all__ = [
    "Basis",
    "Conditional",
    "Function",
    "Indexed",
    "Network",
    "Powers",
    "at",
    "load_conditional",
    "merge",
    "save_conditional",
]

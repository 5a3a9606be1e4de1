"""Adapters that are functions of a parameter: one set of arrays serves every value."""

from ._bases import Basis, Function, Indexed, Network, Powers
from ._conditional import Conditional, at, merge
from ._fit import Fitted, fit
from ._from_sets import from_sets
from ._hats import Hats
from ._summary import ConditionalReport, ConditionalRow

__all__ = [
    "Basis",
    "Conditional",
    "ConditionalReport",
    "ConditionalRow",
    "Fitted",
    "Function",
    "Hats",
    "Indexed",
    "Network",
    "Powers",
    "at",
    "fit",
    "from_sets",
    "merge",
]

"""Adapters that are functions of a parameter, so that one set of arrays serves every value."""

from ._bases import Basis, Coordinate, Function, Indexed, Network, Powers, coordinate_named
from ._conditional import Conditional, at, merge
from ._coordinates import CoordinateReport, CoordinateRow, choose_coordinate
from ._files import load_conditional, save_conditional
from ._fit import Fitted, fit
from ._from_sets import from_sets
from ._hats import Hats
from ._summary import ConditionalReport, ConditionalRow

__all__ = [
    "Basis",
    "Conditional",
    "ConditionalReport",
    "ConditionalRow",
    "Coordinate",
    "CoordinateReport",
    "CoordinateRow",
    "Fitted",
    "Function",
    "Hats",
    "Indexed",
    "Network",
    "Powers",
    "at",
    "choose_coordinate",
    "coordinate_named",
    "fit",
    "from_sets",
    "load_conditional",
    "merge",
    "save_conditional",
]

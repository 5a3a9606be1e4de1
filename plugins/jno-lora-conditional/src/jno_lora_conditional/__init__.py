"""Adapters that are functions of a parameter: one set of arrays serves every value."""

from ._bases import Basis, Function, Indexed, Network, Powers
from ._conditional import Conditional, at, merge

__all__ = ["Basis", "Conditional", "Function", "Indexed", "Network", "Powers", "at", "merge"]

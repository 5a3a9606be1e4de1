"""Laws of structured updates, in NumPy and float64."""

from collections.abc import Callable
from typing import Any

# The effective rank for a requested one and an (out, in) matrix.
EFFECTIVE_RANK: dict[str, Callable[[int, int, int], int]] = {}

# The number of trained parameters, for the effective rank.
PARAMETER_COUNT: dict[str, Callable[[int, int, int], int]] = {}

# `W'` from the adapter's fields, the original matrix, the effective rank and alpha.
LAWS: dict[str, Callable[[Any, Any, int, float], Any]] = {}

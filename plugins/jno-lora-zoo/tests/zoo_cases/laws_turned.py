"""Laws of low rank, of singular directions and of rotations, in NumPy and float64."""

from collections.abc import Callable
from typing import Any

# The effective rank for a requested one and an (out, in) matrix.
EFFECTIVE_RANK: dict[str, Callable[[int, int, int], int]] = {
    "IA3In": lambda rank, out, inputs: rank,
    "IA3Out": lambda rank, out, inputs: rank,
}

# The number of trained parameters, for the effective rank.
PARAMETER_COUNT: dict[str, Callable[[int, int, int], int]] = {
    "IA3In": lambda r, out, inputs: inputs,
    "IA3Out": lambda r, out, inputs: out,
}

# `W'` from the adapter's fields, the original matrix, the effective rank and alpha.
LAWS: dict[str, Callable[[Any, Any, int, float], Any]] = {
    "IA3In": lambda f, W, r, alpha: W * f.scale[None, :],
    "IA3Out": lambda f, W, r, alpha: f.scale[:, None] * W,
}

# `b'` from the fields and the bias, for the methods that change it.
BIAS_LAWS: dict[str, Callable[[Any, Any], Any]] = {
    "IA3Out": lambda f, b: f.scale * b,
}

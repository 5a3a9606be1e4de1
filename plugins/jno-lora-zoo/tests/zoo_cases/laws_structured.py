"""Laws of structured updates, in NumPy and float64."""

from collections.abc import Callable
from typing import Any

import numpy as np


def _smallest(rank, out, inputs):
    return min(rank, out, inputs)


def _loha(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += alpha / r * (f.B1[o] @ f.A1[:, i]) * (f.B2[o] @ f.A2[:, i])
    return new


def _hira(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] *= 1 + alpha / r * (f.lora_B[o] @ f.lora_A[:, i])
    return new


def _miss(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += f.D[i % r, o]
    return new


# The effective rank for a requested one and an (out, in) matrix.
EFFECTIVE_RANK: dict[str, Callable[[int, int, int], int]] = {
    "LoHa": _smallest,
    "HiRA": _smallest,
    "MiSS": lambda rank, out, inputs: min(rank, inputs),
}

# The number of trained parameters, for the effective rank.
PARAMETER_COUNT: dict[str, Callable[[int, int, int], int]] = {
    "LoHa": lambda r, out, inputs: 2 * r * (inputs + out),
    "HiRA": lambda r, out, inputs: r * (inputs + out),
    "MiSS": lambda r, out, inputs: r * out,
}

# `W'` from the adapter's fields, the original matrix, the effective rank and alpha.
LAWS: dict[str, Callable[[Any, Any, int, float], Any]] = {
    "LoHa": _loha,
    "HiRA": _hira,
    "MiSS": _miss,
}

"""Laws of structured updates, in NumPy and float64."""

import math
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


def _gralora(f, W, r, alpha):
    k, q, _ = f.A.shape
    p = f.B.shape[2]
    U = np.zeros((k * p, k * q))
    for j, n in np.ndindex(k, k):
        right = f.A[n][:, j * r // k : (j + 1) * r // k]
        left = f.B[j][n * r // k : (n + 1) * r // k]
        U[j * p : (j + 1) * p, n * q : (n + 1) * q] = left.T @ right.T
    return W + alpha / r * U[: len(W), : W.shape[1]]


def _blocks(r, *sizes):
    """GraLoRA's default number of blocks in a row: the smallest divisor of the rank above 1.

    It is 1 if the last block would have no entry.
    """
    divisors = (n for n in range(2, r + 1) if r % n == 0)
    return next((n for n in divisors if all(math.ceil(s / n) * (n - 1) < s for s in sizes)), 1)


def _gralora_count(r, out, inputs):
    k = _blocks(r, out, inputs)
    return k * r * (math.ceil(inputs / k) + math.ceil(out / k))


def _c3a(f, W, r, alpha):
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += f.kernel[o // r, i // r, (i % r - o % r) % r] / W.shape[1]
    return new


def _randlora(f, W, r, alpha):
    n = f.lambdas.shape[1]
    U = np.zeros((max(W.shape), min(W.shape)))
    for j in range(n):
        U += f.B[:, j::n] @ np.diag(f.lambdas[:, j]) @ f.A @ np.diag(f.gammas[j])
    return W + alpha / r * (U if W.shape[0] >= W.shape[1] else U.T)


# The effective rank for a requested one and an (out, in) matrix.
EFFECTIVE_RANK: dict[str, Callable[[int, int, int], int]] = {
    "LoHa": _smallest,
    "HiRA": _smallest,
    "MiSS": lambda rank, out, inputs: min(rank, inputs),
    "GraLoRA": lambda rank, out, inputs: rank,
    "C3A": _smallest,
    "RandLoRA": lambda rank, out, inputs: rank,
}

# The number of trained parameters, for the effective rank.
PARAMETER_COUNT: dict[str, Callable[[int, int, int], int]] = {
    "LoHa": lambda r, out, inputs: 2 * r * (inputs + out),
    "HiRA": lambda r, out, inputs: r * (inputs + out),
    "MiSS": lambda r, out, inputs: r * out,
    "GraLoRA": _gralora_count,
    "RandLoRA": lambda r, out, inputs: math.ceil(min(out, inputs) / r) * (r + min(out, inputs)),
    "C3A": lambda r, out, inputs: math.ceil(out / r) * math.ceil(inputs / r) * r,
}

# `W'` from the adapter's fields, the original matrix, the effective rank and alpha.
LAWS: dict[str, Callable[[Any, Any, int, float], Any]] = {
    "LoHa": _loha,
    "HiRA": _hira,
    "MiSS": _miss,
    "GraLoRA": _gralora,
    "C3A": _c3a,
    "RandLoRA": _randlora,
}

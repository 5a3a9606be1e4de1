"""Laws of methods that share arrays between layers, in NumPy and float64, for one layer."""

import math
from typing import Any

import numpy as np

from .laws import as_asked, law

# Options of the constructor: the default bank of VB-LoRA is larger than the layers of the tests.
OPTIONS: dict[str, dict[str, Any]] = {"VBLoRA": {"vectors": 6, "vector_length": 2, "top_k": 2}}
_N, _LENGTH = 6, 2


def _between(f: Any, W: Any, scale: float, A: Any, B: Any) -> np.ndarray:
    new = W.copy()
    for o, i in np.ndindex(W.shape):
        new[o, i] += scale * sum(f.b[o] * B[o, k] * f.d[k] * A[k, i] for k in range(len(f.d)))
    return new


@law("VeRAShared", parameters=lambda r, out, inputs: out + r, rank=as_asked)
def _vera_shared(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return _between(f, W, alpha, f.A, f.B)


@law("TiedLoRA", parameters=lambda r, out, inputs: out + r + r * (inputs + out))
def _tied(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    return _between(f, W, alpha / r, f.lora_A, f.lora_B)


def mean_of_best(logits: Any, bank: Any, k: int) -> np.ndarray:
    """The vectors with the `k` largest logits, weighted by the softmax over these."""
    best = sorted(range(len(logits)), key=lambda n: -logits[n])[:k]
    weights = [math.exp(logits[n] - logits[best[0]]) for n in best]
    return sum(w * bank[n] for w, n in zip(weights, best, strict=True)) / sum(weights)


def vb_factors(f: Any, W: Any) -> tuple[np.ndarray, np.ndarray]:
    """VB-LoRA's `A` and `B`, piece by piece."""
    out, inputs = W.shape
    k, length = f.sizes.shape
    r = len(f.logits_A)
    A, B = np.zeros((r, inputs + length)), np.zeros((out + length, r))
    for component in range(r):
        for piece in range(math.ceil(inputs / length)):
            place = slice(piece * length, (piece + 1) * length)
            A[component, place] = mean_of_best(f.logits_A[component, piece], f.bank, k)
        for piece in range(math.ceil(out / length)):
            place = slice(piece * length, (piece + 1) * length)
            B[place, component] = mean_of_best(f.logits_B[piece, component], f.bank, k)
    return A[:, :inputs], B[:out]


def _vblora_count(r: int, out: int, inputs: int) -> int:
    pieces = math.ceil(inputs / _LENGTH) + math.ceil(out / _LENGTH)
    return _N * r * pieces + _N * _LENGTH


@law("VBLoRA", parameters=_vblora_count, rank=as_asked)
def _vblora(f: Any, W: Any, r: int, alpha: float) -> np.ndarray:
    A, B = vb_factors(f, W)
    return W + alpha * B @ A

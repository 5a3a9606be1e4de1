"""Starts that take a matrix out of the layer's weight: found again, as PEFT does when it loads."""

import re
from typing import Any

import numpy as np

from .._errors import MisfitError
from ._type import Module

# The starts that leave the layer's weight alone.
_PURE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# The starts that are found again: PiSSA, exact or by subspace iterations, and OLoRA.
_FOUND = re.compile("pissa(?:_niter_([0-9]+))?|olora")
_SAVE_AS_LORA = (
    "If PEFT can, save it as plain LoRA: `save_pretrained(directory, "
    "path_initial_model_for_weight_conversion=...)`"
)
# The truncated product moves by some 5e-8 / gap of the weight if float32 rounds it (measured).
_LEAST_GAP = 1e-3
# A Q R decomposition moves by some 1e-7 times the condition.
_LARGEST_CONDITION = 1e3
# By this much may the iterations of a random subspace differ from its limit.
_CONVERGED = 1e-6
_UNCLEAR = (
    f"are so close that rounding decides which matrix PEFT takes out of the weight. {_SAVE_AS_LORA}"
)


def refused_start(start: Any) -> list[str]:
    """A line if this `init_lora_weights` changes the layer's weight in a way not found again."""
    if start in _PURE or _FOUND.fullmatch(str(start).lower()):
        return []
    return [
        f"init_lora_weights={start!r}: PEFT takes something out of the layer's weight at the "
        f"start, and the file fits only the rest. {_SAVE_AS_LORA}"
    ]


def initial_factors(m: Module, scale: float) -> dict[str, np.ndarray] | None:
    """The factors that a LoRA took out of the weight, if any. **Raises:** `MisfitError`."""
    start = m.settings.get("init_lora_weights")
    match = _FOUND.fullmatch(str(start).lower())
    if match is None:
        return None
    if m.layout.kind != "linear" or m.settings.get("use_dora") or scale <= 0:
        raise MisfitError(f"{start!r} is read for LoRA of a scale above 0, on linear layers")
    if match[0] == "olora":
        Q, R = np.linalg.qr(m.W)
        if np.linalg.cond(m.W[:, : m.rank]) > _LARGEST_CONDITION:
            raise MisfitError(f"the first {m.rank} columns of its weight {_UNCLEAR}")
        return _initial(R[: m.rank], Q[:, : m.rank])
    U, S, Vt = largest_triplets(m, m.rank)
    if match[1] is not None and m.rank < len(S):
        ratio = (S[m.rank] / S[m.rank - 1]) ** (2 * int(match[1]) + 1)
        if ratio > _CONVERGED:
            raise MisfitError(f"{start!r} did not converge: PEFT finds another part each time")
    root = np.sqrt(S[: m.rank] / scale)
    return _initial(root[:, None] * Vt, U * root)


def largest_triplets(m: Module, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `r` largest singular triplets of the weight, but all singular values."""
    U, S, Vt = np.linalg.svd(m.W, full_matrices=False)
    if r < len(S) and S[r - 1] - S[r] < _LEAST_GAP * S[r - 1]:
        raise MisfitError(f"the singular values {r} and {r + 1} of its weight {_UNCLEAR}")
    return U[:, :r], S, Vt[:r]


def _initial(A: np.ndarray, B: np.ndarray) -> dict[str, np.ndarray]:
    return {"initial_A": A.astype(np.float32), "initial_B": B.astype(np.float32)}

"""Starts that take a part out of the layer's weight, which the file does not hold: found again.

PEFT decomposes the weight again whenever it loads such a file, and so does this module. The part
must not depend on rounding, or on numbers that only Torch draws.
"""

import re

import numpy as np

from ._module import Converted, Module
from ._updates import MisfitError

# The starts that leave the layer's weight alone.
PURE_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# The starts that are found again: PiSSA, exact or by subspace iterations, and OLoRA.
_FOUND = re.compile("pissa(?:_niter_([0-9]+))?|olora")
# The truncated product moves by some 5e-8 / gap of the weight if float32 rounds it (measured).
_LEAST_GAP = 1e-3
# A Q R decomposition moves by some 1e-7 times the condition.
_LARGEST_CONDITION = 1e3
# By this much may the iterations of a random subspace differ from its limit.
_CONVERGED = 1e-6


def is_found(start: object) -> bool:
    """Whether the part that this `init_lora_weights` takes out can be found again."""
    return isinstance(start, str) and _FOUND.fullmatch(start.lower()) is not None


def residual_of(m: Module, scale: float) -> dict[str, np.ndarray] | None:
    """The factors of the part that a LoRA took out at its start; `None` if it took nothing.

    **Raises:** `MisfitError` if no two computers find the same part.
    """
    start = m.values.get("init_lora_weights")
    if not is_found(start):
        return None
    if m.layout.kind != "linear" or m.values.get("use_dora") or scale <= 0:
        raise MisfitError(
            f"init_lora_weights={start!r} is read for LoRA of a scale above 0, on linear layers"
        )
    if str(start).lower() == "olora":
        Q, R = np.linalg.qr(m.W)
        if np.linalg.cond(m.W[:, : m.rank]) > _LARGEST_CONDITION:
            raise MisfitError(f"the first {m.rank} columns of its weight {_UNCLEAR}")
        return {"initial_A": _float32(R[: m.rank]), "initial_B": _float32(Q[:, : m.rank])}
    U, S, Vt = _largest(m, m.rank)
    found = _FOUND.fullmatch(str(start).lower())
    if found is not None and found[1] is not None and m.rank < len(S):
        ratio = (S[m.rank] / S[m.rank - 1]) ** (2 * int(found[1]) + 1)
        if ratio > _CONVERGED:
            raise MisfitError(
                f"init_lora_weights={start!r} starts from numbers that Torch draws, and its "
                f"iterations leave {ratio:.0e} of them: PEFT finds another part each time"
            )
    root = np.sqrt(S[: m.rank] / scale)
    return {"initial_A": _float32(root[:, None] * Vt), "initial_B": _float32(U * root)}


def osf(m: Module) -> Converted:
    """The singular triplets of the weight but for the largest, trained: MiLoRA's."""
    names = [f"osf_svd_params.{letter}_low" for letter in "USV"]
    S = m.parts.get(names[1])
    outputs, inputs = m.layout.matrix
    r = 0 if S is None else S.size
    m.check(dict(zip(names, ((outputs, r), (r,), (r, inputs)), strict=True)))
    U, S, V = (m.parts[name] for name in names)
    kept = min(outputs, inputs) - r
    if kept < 1 or r < 1:
        raise MisfitError(f"it trains {r} of the {min(outputs, inputs)} triplets of its weight")
    Uh, Sh, Vh = _largest(m, kept)
    # The rest of the weight, and factors of it: its rows are those of the smaller side.
    rest_U, rest_S, rest_V = np.linalg.svd(m.W - (Uh * Sh[:kept]) @ Vh, full_matrices=False)
    initial = {"initial_A": _float32(rest_S[:r, None] * rest_V[:r])}
    state = {"lora_A": S[:, None] * V, "lora_B": U, **initial, "initial_B": _float32(rest_U[:, :r])}
    return Converted("milora", r, float(r), state)


def _largest(m: Module, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `r` largest singular triplets, but all singular values."""
    U, S, Vt = np.linalg.svd(m.W, full_matrices=False)
    if r < len(S) and S[r - 1] - S[r] < _LEAST_GAP * S[r - 1]:
        raise MisfitError(f"the singular values {r} and {r + 1} of its weight {_UNCLEAR}")
    return U[:, :r], S, Vt[:r]


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


_UNCLEAR = (
    "are so close that the part which PEFT takes out of it depends on rounding. Save it as plain "
    "LoRA in PEFT: `save_pretrained(directory, path_initial_model_for_weight_conversion=...)`"
)

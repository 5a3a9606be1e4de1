"""What is wrong with the updates and the bases of a model, compared with the record of a file."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ._record import Entry, Record, Signature
from ._signatures import ENTRIES, signature

# How far a base may be from the base of the file because of its dtype or quantisation alone,
# relative to its weights and to its outputs.
ROUNDING = {"float64": 1e-3, "float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "int8": 0.1}
FOUR_BITS = 0.5
SAME = 0.01  # the relative difference that no fault makes

Updates = Mapping[str, tuple[str, np.ndarray, np.ndarray]]

MERGED = "already merged into the base"
MISSING = "missing"
INACTIVE = "inactive: the model has no adapters, or they are disabled"
TRANSPOSED = "transposed: A and B are exchanged"
ZERO = "zero: inactive, or never trained"
ROWS = "rows in another order"
COLUMNS = "columns in another order"
OTHER = "another update"
OTHER_BASE = "another base"


def update_finding(name: str, record: Record, updates: Updates) -> str:
    """What happened to one update; empty if it is as it was."""
    entry = record.entries[name]
    if name not in updates:
        return MISSING
    method, update, base = updates[name]
    found, was = signature(update), entry.update
    # A multiplicative update moves with its base, and a merged weight was rounded.
    slack = np.linalg.norm(signature(base) - entry.base) * (1 if _is_near(base, entry) else 0)
    slack += 2 * float(jnp.finfo(base.dtype).eps) * entry.base[0]
    if not found.any() and np.linalg.norm(was) > slack:
        return ZERO
    if np.linalg.norm(found - was) <= SAME * np.linalg.norm(was) + slack:
        return ""
    if not was.any():
        return OTHER
    factor = _share(found[ENTRIES], was[ENTRIES])
    if _near(found[ENTRIES], factor * was[ENTRIES]) and _near(found[:5], abs(factor) * was[:5]):
        return f"scale wrong by {factor:.3g}"
    if method != entry.method:
        return f"read as {method}, saved as {entry.method}"
    if _near(signature(update.T), was):
        return TRANSPOSED
    for other, there in record.entries.items():
        if other != name and there.update.any() and _near(found, there.update):
            return f"the update of {other}"
    if np.allclose(found[:3], was[:3], rtol=SAME):
        return ROWS
    if np.allclose(found[[0, 3, 4]], was[[0, 3, 4]], rtol=SAME):
        return COLUMNS
    return OTHER


def merged_finding(entry: Entry, weight: Signature, scheme: str) -> str:
    """What happened to an update in a weight that should have it; empty if it is there once."""
    moved, was = (weight - entry.base)[ENTRIES], entry.update[ENTRIES]
    is_float = scheme.startswith(("float", "bfloat"))
    slack = (2 * float(jnp.finfo(scheme).eps) if is_float else rounding(scheme)) * entry.base[0]
    if np.linalg.norm(moved - was) <= SAME * np.linalg.norm(was) + slack:
        return ""
    return MISSING if np.linalg.norm(moved) <= slack else OTHER


def base_finding(name: str, record: Record, base: np.ndarray, scheme: str) -> str:
    """What happened to the base of one update; empty if it is as it was."""
    entry, found = record.entries[name], signature(base)
    if _near(found, entry.base, rounding(scheme)):
        return ""
    for other, there in record.entries.items():
        if other != name and there.base.any() and _near(found, there.base, rounding(scheme)):
            return f"the layer of {other}"
    return OTHER_BASE


def times_merged(record: Record, bases: Mapping[str, Signature]) -> int:
    """How often the updates are in the bases already: by what the bases moved since the file."""
    names = [name for name in record.entries if name in bases]
    if not names:
        return 0
    moved = np.stack([(bases[name] - record.entries[name].base)[ENTRIES] for name in names])
    was = np.stack([record.entries[name].update[ENTRIES] for name in names])
    share = _share(moved, was)
    unexplained = np.linalg.norm(moved - share * was) / max(np.linalg.norm(was), 1e-30)
    is_times = round(share) > 0 and abs(share - round(share)) < 0.3 and unexplained < 0.7
    return round(share) if is_times else 0


def rounding(scheme: str) -> float:
    """How far a base of a dtype or quantisation may be from the base of the file."""
    return ROUNDING.get(scheme, FOUR_BITS)


def _share(found: np.ndarray, of: np.ndarray) -> float:
    """The factor with which `of` comes closest to `found`."""
    return float(np.vdot(found, of) / max(np.vdot(of, of), 1e-30))


def _is_near(base: np.ndarray, entry: Entry) -> bool:
    return _near(signature(base), entry.base, FOUR_BITS)


def _near(found: np.ndarray, wanted: np.ndarray, tolerance: float = SAME) -> bool:
    return bool(np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted))

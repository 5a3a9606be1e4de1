"""Positions of entries in a weight, counted row by row: the zoo's digits, and Torch's draws."""

import math
from typing import Any

import numpy as np

from .._errors import MisfitError
from ._type import Adapter, Module, Written

# PEFT's default for `random_loc_seed`.
SEED = 777


def to_digits(m: Module, flat: np.ndarray) -> np.ndarray:
    """Positions as the zoo has them: four digits each, lowest first."""
    if flat.size and (flat.min() < 0 or flat.max() >= math.prod(m.layout.matrix)):
        raise MisfitError("its positions are not all within the weight")
    return ((flat[:, None] >> np.arange(0, 32, 8)) & 255).astype(np.uint8)


def from_digits(digits: np.ndarray) -> np.ndarray:
    return (np.rint(digits).astype(np.int64) << np.arange(0, 32, 8)).sum(1)


def drawn(m: Module) -> np.ndarray:
    """The positions that PEFT draws for this layer, as digits."""
    seed, size = m.settings.get("random_loc_seed", SEED), math.prod(m.layout.matrix)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise MisfitError(f"the seed of its positions must be a whole number, but is {seed!r}")
    if size >= 2**32 // 20:
        raise MisfitError("Torch draws positions in so large a weight in another way")
    return to_digits(m, permuted(size, m.rank, seed))


def write_spectrum(adapter: Adapter, name: str, settings: dict[str, Any]) -> Written:
    """Coefficients of a transform, at the positions that the default seed gives."""
    values, flat = adapter.state["coefficients"], from_digits(adapter.state["positions"])
    if not np.array_equal(flat, permuted(math.prod(adapter.layout.matrix), len(values), SEED)):
        raise MisfitError(f"Torch draws PEFT's positions by a seed, and {SEED} gives others")
    tensors, settings = {f"{name}_spectrum": values}, {**settings, "random_loc_seed": SEED}
    return adapter.written(tensors, settings, rank=len(values))


def permuted(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` numbers of Torch's `randperm(size)`."""
    moved: dict[int, int] = {}
    chosen = np.empty(count, np.int64)
    for i, draw in enumerate(_twister(seed, count).tolist()):
        j = i + (draw % (size - i) if i < size - 1 else 0)
        chosen[i], moved[j] = moved.get(j, j), moved.get(i, i)
    return chosen


def normal(count: int, seed: int) -> np.ndarray:
    """The first 16 of `count` (16 or more) normal numbers: pairs by Box and Muller, 8 apart."""
    first = _twister(seed, 16) % 2**24 / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - first[:8])), 2 * np.pi * first[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


# Torch draws on a CPU by a Mersenne twister, which NumPy has too.
def _twister(seed: int, count: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)

"""The numbers that Torch draws from a seed on a CPU, by a Mersenne twister, which NumPy has too."""

import numpy as np


def permuted(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` numbers of Torch's `randperm(size)`."""
    moved: dict[int, int] = {}
    chosen = np.empty(count, np.int64)
    for i, draw in enumerate(_twister(seed, count).tolist()):
        j = i + (draw % (size - i) if i < size - 1 else 0)
        chosen[i], moved[j] = moved.get(j, j), moved.get(i, i)
    return chosen


def normal(count: int, seed: int) -> np.ndarray:
    """The first 16 of `count` (16 or more) normal numbers, to rounding.

    They come in pairs, eight apart, by the method of Box and Muller.
    """
    first = _twister(seed, 16) % 2**24 / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - first[:8])), 2 * np.pi * first[8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _twister(seed: int, count: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)

"""Atoms in periodic cells: neighbours, and crystals that are stretched and rattled."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ._force_field import Graph


class Crystal(NamedTuple):
    """Atomic numbers, positions in angstrom, and the rows of the cell."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray


# Fractional coordinates of cubic cells.
_CENTRED = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
FCC = np.array(_CENTRED)
DIAMOND = np.concatenate([FCC, FCC + 0.25])
ROCKSALT = np.concatenate([FCC, FCC + 0.5])


def neighbours(crystal: Crystal, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs closer than the cutoff: senders, receivers, and the offsets of the senders."""
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.cell), axis=0)
    # Positions may lie outside of the cell by a part of it.
    ranges = [np.arange(-n, n + 1) for n in np.ceil(cutoff / heights).astype(int) + 1]
    images = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = images @ crystal.cell
    x = crystal.positions
    vectors = x[:, None, None] - x[None, :, None] + offsets
    lengths = np.linalg.norm(vectors, axis=-1)
    senders, receivers, image = np.nonzero((lengths < cutoff) & (lengths > 1e-9))
    return senders, receivers, offsets[image]


def graph_of(
    crystal: Crystal, types: dict[int, int], cutoff: float, pairs: int | None = None
) -> Graph:
    """The graph of a crystal.

    **Arguments:**

    - `types`: the index of the species of each atomic number.
    - `pairs`: the number of pairs, filled with pairs as long as the cutoff, which have no effect.

    **Raises:** `ValueError` if the crystal has more pairs.
    """
    senders, receivers, offsets = neighbours(crystal, cutoff)
    missing = 0 if pairs is None else pairs - len(senders)
    if missing < 0:
        raise ValueError(f"The crystal has {len(senders)} pairs, and there is room for {pairs}.")
    far = np.tile([cutoff, 0.0, 0.0], (missing, 1))
    return Graph(
        jnp.array([types[int(number)] for number in crystal.numbers]),
        jnp.asarray(crystal.positions, jnp.float32),
        jnp.asarray(np.pad(senders, (0, missing))),
        jnp.asarray(np.pad(receivers, (0, missing))),
        jnp.asarray(np.concatenate([offsets, far]), jnp.float32),
    )


def rattled(
    rng: np.random.Generator,
    fractional: np.ndarray,
    numbers: Sequence[int],
    a: float,
    strain: float,
    rattle: float,
) -> Crystal:
    """A cubic crystal with a random strain of each entry of the cell, and random displacements."""
    cell = a * (np.eye(3) + rng.uniform(-strain, strain, (3, 3)))
    positions = fractional @ cell + rng.normal(0, rattle, fractional.shape)
    return Crystal(np.asarray(numbers), positions, cell)

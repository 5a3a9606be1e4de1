"""Atoms in periodic cells: neighbours, and crystals that are stretched and rattled."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._force_field import Graph


class Crystal(NamedTuple):
    """Atomic numbers, positions in angstrom, and the rows of the cell."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray


# Fractional coordinates of cells of four atoms.
FCC = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
# Halves of cubic cells, with edges `(a / sqrt(2), a / sqrt(2), a)`.
ROCKSALT = np.array([(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0, 0, 0.5)])
ZINCBLENDE = np.array([(0, 0, 0), (0.5, 0.5, 0.5), (0, 0.5, 0.25), (0.5, 0, 0.75)])


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


def graph_of(crystal: Crystal, types: dict[int, int], cutoff: float) -> Graph:
    """The graph of a crystal, for a model with the index `types[number]` of each species."""
    senders, receivers, offsets = neighbours(crystal, cutoff)
    return Graph(
        np.array([types[int(number)] for number in crystal.numbers]),
        crystal.positions.astype(np.float32),
        senders,
        receivers,
        offsets.astype(np.float32),
    )


def stacked(graphs: list[Graph], cutoff: float) -> Graph:
    """Graphs with equally many atoms as one graph of arrays with an axis more.

    Every graph gets as many pairs as the largest has.
    """
    pairs = max(len(graph.senders) for graph in graphs)
    parts = [padded(jax.tree.map(lambda x: x[None], graph), cutoff, pairs) for graph in graphs]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def padded(graphs: Graph, cutoff: float, pairs: int) -> Graph:
    """Stacked graphs with `pairs` pairs, by pairs as long as the cutoff, which have no effect."""
    missing = pairs - graphs.senders.shape[1]
    far = np.tile(np.array([cutoff, 0, 0], np.float32), (len(graphs.species), missing, 1))
    graphs = graphs._replace(
        senders=np.pad(graphs.senders, ((0, 0), (0, missing))),
        receivers=np.pad(graphs.receivers, ((0, 0), (0, missing))),
        offsets=np.concatenate([graphs.offsets, far], axis=1),
    )
    return jax.tree.map(jnp.asarray, graphs)


def rattled(
    rng: np.random.Generator,
    fractional: np.ndarray,
    numbers: Sequence[int],
    lengths: Sequence[float],
    strain: float,
    rattle: float,
) -> Crystal:
    """A crystal with a random strain of every entry, and normal displacements of the atoms.

    **Arguments:** `lengths`: of the cell's three edges, in angstrom, as is `rattle`.
    """
    cell = np.diag(lengths) @ (np.eye(3) + rng.uniform(-strain, strain, (3, 3)))
    positions = fractional @ cell + rng.normal(0, rattle, fractional.shape)
    return Crystal(np.asarray(numbers), positions, cell)

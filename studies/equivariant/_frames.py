"""The frames of the study: alloys of the target, and materials that the model should still know."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._crystals import FCC, ROCKSALT, ZINCBLENDE, Crystal, rattled
from ._force_field import ForceField, Graph, energy_and_forces
from ._teacher import COPPER, GOLD, Labels

STRAIN, RATTLE = 0.04, 0.12  # of the cell's entries; angstrom
# The positions in the cell, the lengths of the cell's edges over the lattice constant, the elements
# at the positions, and the lattice constant in angstrom.
_HALF = (2**-0.5, 2**-0.5, 1.0)
TARGET_METALS, METALS = (
    tuple((FCC, (1.0, 1.0, 1.0), (number,) * 4, a) for number, a in constants)
    for constants in (
        ((COPPER, 3.61), (GOLD, 4.08)),
        ((47, 4.09), (13, 4.05), (46, 3.89), (78, 3.92)),  # Ag, Al, Pd, Pt
    )
)
SALTS_AND_SEMICONDUCTORS = (
    (ROCKSALT, _HALF, (11, 11, 17, 17), 5.64),  # NaCl
    (ROCKSALT, _HALF, (19, 19, 17, 17), 6.29),  # KCl
    (ZINCBLENDE, _HALF, (31, 31, 33, 33), 5.65),  # GaAs
    (ZINCBLENDE, _HALF, (14, 14, 14, 14), 5.43),  # Si
)


class Frames(NamedTuple):
    """Graphs with equally many atoms and pairs, stacked, and their labels."""

    graphs: Graph
    labels: Labels


def alloys(seed: int, number: int) -> list[Crystal]:
    """Cells of four atoms of copper and gold on a face-centred lattice, in turn 3:1, 2:2, 1:3."""
    rng = np.random.default_rng((2026, seed))
    crystals = []
    for index in range(number):
        gold = 1 + index % 3
        numbers = rng.permutation([GOLD] * gold + [COPPER] * (4 - gold))
        a = 3.61 + (4.08 - 3.61) * gold / 4  # Vegard's law
        crystals.append(rattled(rng, FCC, numbers, (a, a, a), STRAIN, RATTLE))
    return crystals


def rattled_cells(seed: int, materials: Any, number: int) -> list[Crystal]:
    """`number` rattled cells of each of the materials."""
    rng = np.random.default_rng(seed)
    return [
        rattled(rng, sites, numbers, a * np.array(edges), STRAIN, RATTLE)
        for sites, edges, numbers, a in materials
        for _ in range(number)
    ]


def predictions(model: ForceField, graphs: Graph) -> Labels:
    """Energies and forces, one frame after another."""
    return Labels(*jax.lax.map(lambda graph: energy_and_forces(model, graph), graphs))


def misfit(predicted: Labels, given: Labels) -> Float[Array, ""]:
    """The loss: squared errors of the forces, and ten times of the energies per atom."""
    atoms = given.forces.shape[-2]
    energies = jnp.mean((predicted.energy - given.energy) ** 2) / atoms**2
    return jnp.mean((predicted.forces - given.forces) ** 2) + 10 * energies


def absolute_error(predicted: Labels, given: Labels) -> Float[Array, ""]:
    """What validation compares: mean absolute errors of the forces plus of the energies per atom.

    Squared errors of few frames are the errors of the one worst frame.
    """
    atoms = given.forces.shape[-2]
    energies = jnp.mean(jnp.abs(predicted.energy - given.energy)) / atoms
    return jnp.mean(jnp.abs(predicted.forces - given.forces)) + energies


def errors(predicted: Labels, given: Labels) -> tuple[float, float]:
    """Mean absolute errors of the energy in meV per atom, and of the forces in meV/angstrom."""
    atoms = given.forces.shape[-2]
    pairs = zip(predicted, given, strict=True)
    energy, forces = (np.abs(np.subtract(p, g)).mean() for p, g in pairs)
    return float(1e3 * energy / atoms), float(1e3 * forces)


def shifted(model: ForceField, energies: Float[Array, " batch"], frames: Frames) -> ForceField:
    """The model with the energies of the atoms that fit the frames best, by least squares.

    Two potentials have different energies of free atoms. `energies` are the model's own.
    """
    species: Int[np.ndarray, "batch atoms"] = np.asarray(frames.graphs.species)
    kinds = np.unique(species)
    counts = (species[:, :, None] == kinds).sum(axis=1).astype(float)
    differences = np.asarray(frames.labels.energy) - np.asarray(energies)
    shifts = np.linalg.lstsq(counts, differences, rcond=None)[0]
    shift = model.shift.at[kinds].add(jnp.asarray(shifts, jnp.float32))
    return eqx.tree_at(lambda m: m.shift, model, shift)

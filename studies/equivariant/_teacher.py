"""The target of the study: the potential of Sutton and Chen for copper, gold and their alloys.

A. P. Sutton and J. Chen, "Long-range Finnis-Sinclair potentials", Philosophical Magazine Letters
61 (1990), 139; for alloys, H. Rafii-Tabar and A. P. Sutton, "Long-range Finnis-Sinclair potentials
for f.c.c. metallic alloys", Philosophical Magazine Letters 63 (1991), 217.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._crystals import Crystal, graph_of, stacked
from ._force_field import Graph

COPPER, GOLD = 29, 79
_TYPES = {COPPER: 0, GOLD: 1}
# The energy scale in eV, the lattice constant in angstrom, c, and the exponents n and m.
_ENERGY = np.array([1.2382e-2, 1.2793e-2])
_LENGTH = np.array([3.61, 4.08])
_C = np.array([39.432, 34.408])
_N, _M = np.array([9.0, 10.0]), np.array([6.0, 8.0])
_INNER, _CUTOFF = 7.0, 8.0  # angstrom, between which the functions of the distance decay to zero


class Labels(NamedTuple):
    """The energy in eV and the forces in eV per angstrom."""

    energy: Float[Array, "*batch"]
    forces: Float[Array, "*batch atoms 3"]


def labels(crystals: list[Crystal]) -> Labels:
    """Energies and forces of crystals with equally many atoms, in double precision."""
    with jax.enable_x64(True):
        graphs = stacked([graph_of(c, _TYPES, _CUTOFF) for c in crystals], _CUTOFF)
        energy, gradient = jax.jit(jax.vmap(jax.value_and_grad(_energy)))(
            graphs.positions.astype(float), graphs
        )
    return Labels(np.asarray(energy, np.float32), np.asarray(-gradient, np.float32))


def _energy(positions: Float[Array, "atoms 3"], graph: Graph) -> Float[Array, ""]:
    vectors = positions[graph.senders] - positions[graph.receivers] + graph.offsets
    r = jnp.linalg.norm(vectors, axis=-1)
    here, there = graph.species[graph.receivers], graph.species[graph.senders]
    length, n, m = (jnp.asarray(x[:, None] + x) / 2 for x in (_LENGTH, _N, _M))
    energy = jnp.sqrt(jnp.asarray(_ENERGY[:, None] * _ENERGY))
    ratio, decay = length[here, there] / r, _decay(r)
    repulsion = energy[here, there] * ratio ** n[here, there] * decay / 2
    density = jnp.zeros(len(positions)).at[graph.receivers].add(ratio ** m[here, there] * decay)
    depth = jnp.asarray(_C * _ENERGY)[graph.species]
    return jnp.sum(repulsion) - jnp.sum(depth * jnp.sqrt(density))


def _decay(r: Float[Array, " pairs"]) -> Float[Array, " pairs"]:
    x = jnp.clip((r - _INNER) / (_CUTOFF - _INNER), 0, 1)
    return 1 - x**3 * (10 - 15 * x + 6 * x**2)

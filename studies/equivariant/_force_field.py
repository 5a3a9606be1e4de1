"""SevenNet's force field, a NequIP, in e3nn-jax and Equinox.

NequIP: Batzner et al., "E(3)-equivariant graph neural networks for data-efficient and accurate
interatomic potentials", https://arxiv.org/abs/2101.03164. SevenNet: Park et al., "Scalable
Parallel Algorithm for Graph Neural Network Interatomic Potentials in Molecular Dynamics
Simulations", https://arxiv.org/abs/2402.03789.
"""

from collections.abc import Sequence
from typing import NamedTuple

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

# The factor with which silu of a normal variable has the second moment 1, as e3nn for Torch
# samples it. e3nn-jax integrates, and has another number in the fourth digit.
_SILU = 1.6791767923989418


class Graph(NamedTuple):
    """Atoms of a periodic cell, and pairs of neighbours.

    The pair `k` is a vector from the atom `receivers[k]` to an image of the atom `senders[k]`,
    which is `offsets[k]` away from the atom itself. A pair as long as the cutoff has no effect.
    """

    species: Int[Array, " atoms"]
    positions: Float[Array, "atoms 3"]
    senders: Int[Array, " pairs"]
    receivers: Int[Array, " pairs"]
    offsets: Float[Array, "pairs 3"]


def linear(irreps_in: e3nn.Irreps, irreps_out: e3nn.Irreps, key: PRNGKeyArray) -> eqx.Module:
    """An equivariant linear layer with the normalisation of e3nn for Torch."""
    return e3nn.equinox.Linear(
        irreps_out=irreps_out,
        irreps_in=irreps_in,
        path_normalization="element",
        gradient_normalization="path",
        key=key,
    )


def silu(x: Array) -> Array:
    """`silu` with e3nn's normalisation."""
    return _SILU * jax.nn.silu(x)


def messages(x: e3nn.IrrepsArray, harmonics: e3nn.IrrepsArray, keep: e3nn.Irreps):
    """The tensor product of features with spherical harmonics, sorted by irreps."""
    return e3nn.tensor_product(x, harmonics, filter_ir_out=[ir for _, ir in keep])


class Interaction(eqx.Module):
    """A layer of messages between neighbours, a self-interaction, and a gate."""

    shortcut: eqx.Module
    before: eqx.Module
    radial: tuple[eqx.nn.Linear, ...]
    after: eqx.Module
    divisor: Float[Array, ""]
    irreps_out: e3nn.Irreps = eqx.field(static=True)

    def __init__(
        self,
        irreps_in: e3nn.Irreps,
        irreps_out: e3nn.Irreps,
        harmonics: e3nn.Irreps,
        widths: Sequence[int],
        divisor: float,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 3 + len(widths))
        gates = sum(mul for mul, ir in irreps_out if ir.l > 0)
        gated = (gates * e3nn.Irreps("0e") + irreps_out).regroup()
        between = e3nn.tensor_product(
            irreps_in, harmonics, filter_ir_out=[ir for _, ir in irreps_out]
        )
        self.irreps_out = irreps_out
        self.shortcut = linear(irreps_in, gated, keys[0])
        self.before = linear(irreps_in, irreps_in, keys[1])
        self.after = linear(between, gated, keys[2])
        sizes = (*widths, between.num_irreps)
        pairs = zip(sizes[:-1], sizes[1:], keys[3:], strict=True)
        self.radial = tuple(eqx.nn.Linear(a, b, use_bias=False, key=k) for a, b, k in pairs)
        self.divisor = jnp.asarray(divisor)

    def __call__(
        self,
        x: e3nn.IrrepsArray,
        harmonics: e3nn.IrrepsArray,
        basis: Float[Array, "pairs basis"],
        graph: Graph,
    ) -> e3nn.IrrepsArray:
        weights = basis
        for layer in self.radial[:-1]:
            weights = silu(jax.vmap(layer)(weights))
        weights = jax.vmap(self.radial[-1])(weights)
        sent = messages(self.before(x)[graph.senders], harmonics, self.irreps_out) * weights
        zeros = jnp.zeros((len(x.array), sent.irreps.dim))
        received = zeros.at[graph.receivers].add(sent.array) / self.divisor
        y = self.after(e3nn.IrrepsArray(sent.irreps, received))
        # The first features are scalars, and the linear layer leaves out what they cannot reach.
        y = y + self.shortcut(x).extend_with_zeros(y.irreps)
        scalars = silu(y.chunks[0][..., 0])
        values, start = [], self.irreps_out[0].mul
        for (mul, _), chunk in zip(self.irreps_out[1:], y.chunks[1:], strict=True):
            values.append(chunk * scalars[:, start : start + mul, None])
            start += mul
        values.insert(0, scalars[:, : self.irreps_out[0].mul, None])
        return e3nn.from_chunks(self.irreps_out, values, (len(scalars),), scalars.dtype)


class ForceField(eqx.Module):
    """The energy of atoms in a periodic cell, as a sum over atoms.

    The irreps of SevenNet have no parity: all are even, and start with scalars.
    """

    frequencies: Float[Array, " basis"]
    embedding: eqx.Module
    interactions: tuple[Interaction, ...]
    readout: tuple[eqx.Module, eqx.Module]
    scale: Float[Array, " species"]
    shift: Float[Array, " species"]
    cutoff: float = eqx.field(static=True)
    inner_cutoff: float = eqx.field(static=True)

    def __init__(
        self,
        irreps: Sequence[str],
        species: int,
        *,
        widths: Sequence[int] = (8, 64, 64),
        cutoff: float = 5.0,
        inner_cutoff: float = 4.5,
        divisor: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `irreps`: the irreps of the features, before and after each interaction.
        - `widths`: the number of radial functions, and the widths of the radial networks.
        - `inner_cutoff`: the distance at which the cutoff function starts to decay.
        - `divisor`: what sums over neighbours are divided by, at first.
        """
        features = [e3nn.Irreps(text) for text in irreps]
        largest = max(irreps.lmax for irreps in features)
        harmonics = e3nn.Irreps([(1, (degree, 1)) for degree in range(largest + 1)])
        keys = jax.random.split(key, len(features) + 2)
        self.frequencies = jnp.arange(1, widths[0] + 1) * jnp.pi / cutoff
        self.embedding = linear(species * e3nn.Irreps("0e"), features[0], keys[0])
        steps = zip(features[:-1], features[1:], keys[3:], strict=True)
        self.interactions = tuple(
            Interaction(a, b, harmonics, widths, divisor, k) for a, b, k in steps
        )
        hidden = features[-1].dim // 2 * e3nn.Irreps("0e")
        self.readout = (
            linear(features[-1], hidden, keys[1]),
            linear(hidden, e3nn.Irreps("0e"), keys[2]),
        )
        self.scale, self.shift = jnp.ones(species), jnp.zeros(species)
        self.cutoff, self.inner_cutoff = cutoff, inner_cutoff

    def __call__(self, graph: Graph) -> Float[Array, ""]:
        """The energy in eV."""
        positions = graph.positions
        vectors = positions[graph.senders] - positions[graph.receivers] + graph.offsets
        r = jnp.linalg.norm(vectors, axis=-1)
        basis = jnp.sin(self.frequencies * r[:, None]) / r[:, None] * (2 / self.cutoff)
        basis = basis * self._decay(r)[:, None]
        largest = max(layer.irreps_out.lmax for layer in self.interactions)
        harmonics = e3nn.spherical_harmonics(
            [e3nn.Irrep(degree, 1) for degree in range(largest + 1)],
            e3nn.IrrepsArray("1e", vectors),
            normalize=True,
            normalization="component",
        )
        kinds = jax.nn.one_hot(graph.species, len(self.scale))
        x = self.embedding(e3nn.IrrepsArray(f"{len(self.scale)}x0e", kinds))
        for interaction in self.interactions:
            x = interaction(x, harmonics, basis, graph)
        for layer in self.readout:
            x = layer(x)
        energies = x.array[:, 0] * self.scale[graph.species] + self.shift[graph.species]
        return jnp.sum(energies)

    def _decay(self, r: Float[Array, " pairs"]) -> Float[Array, " pairs"]:
        """The cutoff function XPLOR: 1 up to the inner cutoff, then smoothly to 0."""
        inner, outer, square = self.inner_cutoff**2, self.cutoff**2, r**2
        decay = (outer - square) ** 2 * (outer + 2 * square - 3 * inner) / (outer - inner) ** 3
        return jnp.where(r < self.inner_cutoff, 1.0, jnp.where(r < self.cutoff, decay, 0.0))


def energy_and_forces(
    model: ForceField, graph: Graph
) -> tuple[Float[Array, ""], Float[Array, "atoms 3"]]:
    """The energy in eV and the forces in eV per angstrom."""
    energy, gradient = jax.value_and_grad(
        lambda positions: model(graph._replace(positions=positions))
    )(graph.positions)
    return energy, -gradient

"""A whole model: it is found by default, stays equivariant, and keeps its adapters in files."""

from typing import Any

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb

import jno_lora_e3nn  # noqa: F401
from jno.lora import Net, lora_report, merge_lora
from jno.lora.extending import adapted_layers

HIDDEN = "4x0e + 3x1o"
SPECIES = 2


class RadialLinear(eqx.Module):
    """As `nequix.model.Linear`, whose package needs libraries that the tests do without."""

    weights: jax.Array
    bias: jax.Array | None
    use_bias: bool = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.dot(x, self.weights)
        return x + self.bias if self.bias is not None else x


RadialLinear.__module__, RadialLinear.__name__ = "nequix.model", "Linear"


class ForceField(eqx.Module):
    """One interaction block as in NequIP: `energy(species, positions)`."""

    embed: Any
    first: Any
    radial: Any
    second: Any
    skip: Any
    readout: Any

    def __init__(self, key: Any):
        keys = jax.random.split(key, 6)
        linear = e3nn.equinox.Linear
        irreps = e3nn.Irreps(HIDDEN)
        messages = e3nn.tensor_product(irreps, e3nn.Irreps("0e + 1o + 2e"), filter_ir_out=irreps)
        types = {"linear_type": "indexed", "num_indexed_weights": SPECIES}
        self.embed = linear(irreps_in=f"{SPECIES}x0e", irreps_out="4x0e", key=keys[0])
        self.first = linear(irreps_in="4x0e", irreps_out=HIDDEN, force_irreps_out=True, key=keys[1])
        weights = jax.random.normal(keys[2], (3, messages.num_irreps))
        self.radial = RadialLinear(weights, None, False)
        self.second = linear(irreps_in=messages, irreps_out=HIDDEN, key=keys[3])
        self.skip = linear(irreps_in=HIDDEN, irreps_out=HIDDEN, key=keys[4], **types)
        self.readout = linear(irreps_in=HIDDEN, irreps_out="0e", biases=True, key=keys[5])

    def __call__(self, species: jax.Array, positions: jax.Array) -> jax.Array:
        """The energy of atoms that all see each other."""
        n = len(species)
        senders, receivers = jnp.nonzero(~jnp.eye(n, dtype=bool), size=n * (n - 1))
        vectors = positions[receivers] - positions[senders]
        lengths = jnp.linalg.norm(vectors, axis=1)
        # In the dtype of the positions, which `one_hot` does not know.
        one_hot = jax.nn.one_hot(species, SPECIES, dtype=positions.dtype)
        x = self.first(self.embed(e3nn.IrrepsArray(f"{SPECIES}x0e", one_hot)))
        basis = jnp.stack([jnp.sin(k * lengths) / lengths for k in range(1, 4)], axis=1)
        sh = e3nn.spherical_harmonics([0, 1, 2], e3nn.IrrepsArray("1o", vectors), normalize=True)
        tensors = e3nn.tensor_product(x[senders], sh, filter_ir_out=e3nn.Irreps(HIDDEN))
        messages = tensors * jax.vmap(self.radial)(basis)
        x = self.second(e3nn.scatter_sum(messages, dst=receivers, output_size=n))
        x = e3nn.scalar_activation(x, [jnp.tanh, None]) + self.skip(species, x)
        # The scalars see the norms of the vectors.
        squares = jnp.sum(self.skip(species, x).array ** 2)
        return jnp.sum(self.readout(x).array) + squares


KEY = jax.random.key(0)
KINDS = jnp.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def model():
    return ForceField(KEY)


@pytest.fixture(scope="module")
def adapted(model):
    return perturb(Net(model).lora(rank=2, alpha=2).module)


@eqx.filter_jit
def energy_and_forces(model, positions):
    # e3nn adds the numbers of the species to the features, to learn the dtype of both.
    with jax.numpy_dtype_promotion("standard"):
        energy, gradient = jax.value_and_grad(lambda x: model(KINDS, x))(positions)
    return energy, -gradient


def rotation_errors(model, positions):
    """Relative errors of energy and forces of rotated positions."""
    R = -e3nn.rand_matrix(jax.random.key(5)).astype(positions.dtype)  # with an inversion
    energy, forces = energy_and_forces(model, positions)
    rotated_energy, rotated_forces = energy_and_forces(model, positions @ R.T)
    return (
        float(abs(rotated_energy - energy) / abs(energy)),
        float(jnp.linalg.norm(rotated_forces - forces @ R.T) / jnp.linalg.norm(forces)),
    )


@pytest.mark.slow
def test_calls_that_name_no_adapter_find_the_layers(adapted):
    assert {path: type(adapter).__name__ for path, adapter in adapted_layers(adapted)} == {
        **dict.fromkeys(("embed", "first", "second", "skip", "readout"), "LoRAE3nn"),
        "radial": "LoRARadial",
    }
    assert {row.distribution for row in lora_report(adapted)} == {"jno-lora-e3nn"}


@pytest.mark.slow
def test_energies_and_forces_turn_with_the_atoms(model, adapted):
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, adapted
        )
        positions = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
        errors = rotation_errors(wide, positions)
        plain = energy_and_forces(model, positions.astype(jnp.float32))[0]
        assert not np.isclose(energy_and_forces(wide, positions)[0], plain, rtol=1e-2)
    single = rotation_errors(adapted, positions.astype(jnp.float32))
    # e3nn keeps some constants in float32.
    assert max(errors) <= 1e-7 and max(single) <= 1e-5


@pytest.mark.slow
def test_radial_layers_act_and_merge(adapted):
    x = jax.random.normal(KEY, (3,))
    assert not np.allclose(adapted.radial(x), adapted.radial.base(x), atol=1e-2)
    merged = merge_lora(adapted).radial
    np.testing.assert_allclose(adapted.radial(x), merged(x), rtol=1e-5, atol=1e-6)

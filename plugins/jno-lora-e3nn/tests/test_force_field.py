"""A whole model: it is found by default, stays equivariant, and keeps its adapters in files."""

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e3nn_models import ForceField
from zoo_cases import perturb

import jno_lora_e3nn  # noqa: F401
from jno.lora import Net, lora_report
from jno.lora.extending import adapted_layers

KEY = jax.random.key(0)
SPECIES = jnp.array([0, 1, 0, 1])


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
        energy, gradient = jax.value_and_grad(lambda x: model(SPECIES, x))(positions)
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


def test_calls_that_name_no_adapter_find_the_layers(adapted):
    assert {path: type(adapter).__name__ for path, adapter in adapted_layers(adapted)} == {
        **dict.fromkeys(("embed", "first", "second", "skip", "readout"), "LoRAE3nn"),
        "radial": "LoRARadial",
    }
    assert {row.distribution for row in lora_report(adapted)} == {"jno-lora-e3nn"}


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

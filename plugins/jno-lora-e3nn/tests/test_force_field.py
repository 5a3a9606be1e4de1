"""A whole model: it is found by default, stays equivariant, and keeps its adapters in files."""

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e3nn_models import ForceField

import jno_lora_e3nn  # noqa: F401
from jno.lora import Net, lora_report, lora_trainable_filter, merge_lora
from jno.lora.extending import adapted_layers

KEY = jax.random.key(0)
SPECIES = jnp.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def model():
    return ForceField(KEY)


@pytest.fixture(scope="module")
def adapted(model):
    return trained(Net(model).lora(rank=2, alpha=2).module)


def trained(model):
    """`model` with all arrays of its adapters moved at random, as after training."""
    arrays, other = eqx.partition(model, lora_trainable_filter(model))
    leaves, treedef = jax.tree.flatten(arrays)
    rng = np.random.default_rng(0)
    moved = [x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return eqx.combine(jax.tree.unflatten(treedef, moved), other)


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


def test_a_merged_model_computes_the_same(adapted):
    positions = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    merged = merge_lora(adapted)
    both = (energy_and_forces(m, positions) for m in (merged, adapted))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_adapters_are_saved_and_loaded(model, adapted, tmp_path):
    net = Net(model).lora(rank=2, alpha=2)
    net.update(eqx.filter(adapted, net.trainable))
    net.save_adapters(tmp_path / "adapters.safetensors")
    loaded = Net(model).load_adapters(tmp_path / "adapters.safetensors").module
    expected, came = (dict(adapted_layers(m)) for m in (adapted, loaded))
    for path, adapter in expected.items():
        for name, array in adapter.state().items():
            np.testing.assert_array_equal(came[path].state()[name], array)

"""SevenNet-0: energies and forces of the authors' code, and rotations of adapted models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.transform

from jno.lora import Net, merge_lora
from jno_lora_testing._case import perturbed

from ._example import skip_without

skip_without({"e3nn-jax": "e3nn_jax", "jno-lora-e3nn": "jno_lora_e3nn", "sevenn": "sevenn"})

from studies.equivariant._crystals import graph_of, stacked  # noqa: E402
from studies.equivariant._force_field import energy_and_forces  # noqa: E402

from .zoo_of_models.sevennet import crystal, loaded, references  # noqa: E402


@pytest.fixture(scope="module")
def graphs():
    model, types = loaded()
    crystals = map(crystal, references())
    graphs = stacked([graph_of(c, types, model.cutoff) for c in crystals], model.cutoff)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], graphs) for i in range(len(references()))]


@pytest.fixture(scope="module")
def predict():
    return eqx.filter_jit(energy_and_forces)


def test_parameters_energies_and_forces_are_the_authors(graphs, predict):
    arrays = jax.tree.leaves(eqx.filter(loaded()[0], eqx.is_inexact_array))
    assert sum(array.size for array in arrays) == 842_623
    for graph, reference in zip(graphs, references().values(), strict=True):
        energy, forces = predict(loaded()[0], graph)
        # Two units in the last place of an energy of 42 eV.
        np.testing.assert_allclose(energy, reference["energy"], rtol=0, atol=8e-6)
        np.testing.assert_allclose(forces, reference["forces"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", [None, "lora", "ia3"])
def test_an_adapted_model_commutes_with_rotations(graphs, predict, variant):
    """The plain model, the adapted model with random adapters, and the merged model."""
    model, graph = loaded()[0], graphs[0]
    if variant is not None:
        model = perturbed(Net(model).freeze().lora(2, 4.0, wrapper=variant).module, 0.1)
        changed = predict(model, graph)[1] - predict(loaded()[0], graph)[1]
        assert np.max(np.abs(changed)) > 1e-2
    rotation = scipy.spatial.transform.Rotation.random(random_state=0).as_matrix()
    turned = graph._replace(
        positions=graph.positions @ jnp.asarray(rotation.T, jnp.float32),
        offsets=graph.offsets @ jnp.asarray(rotation.T, jnp.float32),
    )
    energy, forces = predict(model, graph)
    turned_energy, turned_forces = predict(model, turned)
    assert abs(turned_energy - energy) <= 1e-6 * abs(energy)
    error = np.max(np.abs(turned_forces - forces @ rotation.T))
    assert error <= 1e-5 * np.max(np.abs(forces))
    if variant is not None:
        merged_energy, merged_forces = predict(merge_lora(model), graph)
        np.testing.assert_allclose(merged_energy, energy, rtol=2e-6)
        np.testing.assert_allclose(merged_forces, forces, atol=2e-5 * np.max(np.abs(forces)))

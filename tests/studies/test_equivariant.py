"""The study of force fields: its teacher, crystals and files, and a short form of the whole."""

import functools
import os
import pickle
import zipfile

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies.equivariant import _report, _runs
from studies.equivariant._checkpoint import read_torch
from studies.equivariant._crystals import FCC, Crystal, padded
from studies.equivariant._force_field import ForceField, energy_and_forces
from studies.equivariant._frames import alloys
from studies.equivariant._pretraining import CUTOFF, TYPES, graphs_of
from studies.equivariant._runs import KEY, NONE, QUICK, read, run
from studies.equivariant._teacher import COPPER, GOLD, labels

from .conftest import killed, once


@pytest.mark.parametrize(("number", "a", "energy"), [(COPPER, 3.61, -3.49), (GOLD, 4.08, -3.78)])
def test_the_teacher_has_the_crystals_that_its_authors_fitted(number, a, energy):
    """The lattice constants and cohesive energies, apart from what the shorter cutoff changes."""
    scales = np.array([0.99, 1.0, 1.01])
    lattices = [Crystal(np.full(4, number), s * a * FCC, s * a * np.eye(3)) for s in scales]
    energies = labels(lattices).energy / 4
    assert np.argmin(energies) == 1
    assert abs(energies[1] - energy) < 0.05


def test_the_teachers_forces_are_differences_of_its_energies():
    (crystal,) = alloys(0, 1)
    moves = np.zeros((3, 4, 3))
    moves[1:, 1, 2] = 1e-2, -1e-2
    energies, forces = labels([crystal._replace(positions=crystal.positions + m) for m in moves])
    np.testing.assert_allclose(-(energies[1] - energies[2]) / 2e-2, forces[0, 1, 2], atol=2e-3)


def test_the_force_field_is_equivariant_and_ignores_pairs_at_the_cutoff():
    recipe = QUICK.recipe
    model = ForceField(recipe.irreps, len(TYPES), widths=recipe.widths, key=jax.random.key(0))
    graphs = graphs_of(alloys(0, 1))
    pairs = graphs.senders.shape[1]
    filled = padded(graphs, CUTOFF, pairs + 5)
    further = filled._replace(offsets=filled.offsets.at[:, pairs:].multiply(2))
    R = e3nn.rand_matrix(jax.random.key(0))
    turned = filled._replace(positions=filled.positions @ R.T, offsets=filled.offsets @ R.T)
    batch = jax.tree.map(lambda *x: jnp.concatenate(x), filled, further, turned)
    predict = jax.jit(jax.vmap(lambda graph: energy_and_forces(model, graph)))
    energies, forces = map(np.asarray, predict(batch))
    assert np.abs(forces[0]).max() > 1e-3
    assert energies[1] == energies[0] and np.array_equal(forces[1], forces[0])
    np.testing.assert_allclose(energies[2], energies[0], rtol=1e-5)
    np.testing.assert_allclose(forces[2], forces[0] @ R.T, atol=1e-5 * np.abs(forces).max())


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_checkpoint_runs_no_function(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Harmful(), 2))
    with pytest.raises(pickle.UnpicklingError, match=r"The file asks for \w+\.system"):
        read_torch(tmp_path / "checkpoint.pth")


def test_the_study_runs_goes_on_and_is_reported(tmp_path, monkeypatch):
    # The second start has the compiled programs of the first.
    monkeypatch.setattr(_runs, "_Prepared", functools.cache(_runs._Prepared))
    file = tmp_path / "results.jsonl"
    run(file, QUICK, "LoRA")
    records = read(file)
    assert [record["way"] for record in records].count(NONE) == 1
    assert len(records) == 4
    assert all(np.isfinite(record["test force"]) for record in records)
    lines = killed(file)
    run(file, QUICK, "LoRA")
    assert len(once(file, KEY)) == 4 and file.read_text().splitlines()[:3] == lines
    (tmp_path / "equivariant-study.md").write_text(
        (_report.DOCS / "equivariant-study.md").read_text()
    )
    page = _report.write_page(file, tmp_path).read_text()
    assert "open: runs are missing" in page

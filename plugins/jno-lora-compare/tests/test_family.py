"""The demo of a family of viscosities runs, and its candidates are what they say."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from compare_cases import names_commands_that_exist

from jno.lora._commands._cli import cli

pytest.importorskip("foundax")
pytest.importorskip("jno_lora_conditional")
burgers = pytest.importorskip("jno_lora_demos.burgers")
family = pytest.importorskip("jno_lora_demos.family")
candidates = pytest.importorskip("jno_lora_demos.family._candidates")
data = pytest.importorskip("jno_lora_demos.family._data")


@pytest.fixture(autouse=True)
def defaults_of_jax():
    """foundax is written for JAX's own defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_demo_of_a_family(tmp_path):
    arguments = ["demo", "--task", "family", "--quick", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    number = r" +([\d.e+-]+)"
    row = re.compile(
        rf"^ *(no adaptation|full, with FiLM|conditional adapter){number * 7} +(\S+) *$"
    )
    rows = {m[1]: m.groups()[1:] for m in map(row.match, result.output.splitlines()) if m}
    assert list(rows) == ["no adaptation", "full, with FiLM", "conditional adapter"]
    before, film, conditional = rows.values()
    # Trained, in per cent; the change of the weights, and the error, at the pretrained viscosity.
    assert float(before[0]) == 0 < float(conditional[0]) < 6 < 100 < float(film[0])
    assert float(before[1]) == float(conditional[1]) == 0 < float(film[1])
    assert before[2] == conditional[2]
    assert all(0 < float(error) < 2 for row in rows.values() for error in row[2:7])
    assert "10 fits in one program" in result.output
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")
    names_commands_that_exist(result.output)


def test_film_scales_and_shifts_each_layer():
    film = candidates.Film(burgers.operator(jax.random.key(0)))
    assert eqx.tree_equal(film.at(jnp.asarray(0.04)), film.model)
    ones = eqx.tree_at(lambda f: [*f.gains, *f.shifts], film, replace_fn=jnp.ones_like)
    assert eqx.tree_equal(ones.at(jnp.asarray(burgers.SOURCE)), film.model)
    moved = ones.at(jnp.asarray(burgers.SOURCE + candidates.UNIT / 30))  # u = 1
    np.testing.assert_allclose(
        moved.proj1.weight, 2 * film.model.proj1.weight, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(moved.lift.bias, 2 * film.model.lift.bias + 1, rtol=1e-4, atol=1e-5)
    x = jax.random.normal(jax.random.key(1), (64, 32))
    layers = (m.spectral_layers.layers_conv for m in (moved, film.model))
    for new, old in zip(*layers, strict=True):
        np.testing.assert_allclose(new(x), 2 * old(x), rtol=1e-4, atol=1e-4)


def test_a_family_has_its_simulations_by_viscosity():
    simulated = data.simulate(jax.random.key(0), 3, (0.1, 0.02))
    assert simulated.fields.shape == simulated.solutions.shape == (2, 3, burgers.GRID)
    energy = np.square(simulated.solutions).sum(axis=(1, 2)) / np.square(simulated.fields).sum(
        axis=(1, 2)
    )
    assert energy[0] < energy[1] < 1
    assert simulated.first(1).number == 1 and simulated.after(1).number == 2
    spread = simulated.first(1).spread(4)
    np.testing.assert_array_equal(spread.fields[1, 1], np.roll(simulated.fields[1, 0], 16))
    batch = simulated.batch(5, np.random.default_rng(0))
    assert batch.fields.shape == (2, 5, burgers.GRID)
    np.testing.assert_array_equal(batch.viscosities, simulated.viscosities)

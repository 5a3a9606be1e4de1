"""The Burgers task: its solver is right, its protocol is fair, and the demos of it run."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from jno.lora import JnoLoraWarning, Net
from jno.lora._commands._cli import cli

pytest.importorskip("foundax")
burgers = pytest.importorskip("jno_lora_demos.burgers")
operator = pytest.importorskip("jno_lora_demos.operator")


def cole_hopf(u, viscosity):
    """The exact solution at time 1, by the Cole-Hopf transformation: exp(-U / 2 nu) diffuses."""
    n = u.size
    k = np.fft.rfftfreq(n, 1 / n)
    u_k = np.fft.rfft(u)
    potential = np.fft.irfft(np.where(k > 0, u_k / np.where(k > 0, 1j * k, 1), 0), n)
    phi_k = np.fft.rfft(np.exp(-(potential - potential.min()) / (2 * viscosity)))
    phi_k = phi_k * np.exp(-viscosity * k**2)
    return -2 * viscosity * np.fft.irfft(1j * k * phi_k, n) / np.fft.irfft(phi_k, n)


def test_the_solver_agrees_with_the_exact_solution():
    fields = burgers.initial_fields(jax.random.key(3), 4)
    assert jnp.abs(fields.mean(axis=1)).max() < 1e-5  # which the transformation asks for
    # Where fronts are steeper, the transformation loses its digits.
    for viscosity, size in ((0.1, 1.0), (0.02, 0.2)):
        solutions = np.asarray(burgers.solve(size * fields, viscosity))
        for field, solution in zip(np.asarray(size * fields, np.float64), solutions, strict=True):
            exact = cole_hopf(field, viscosity)
            assert np.linalg.norm(solution - exact) < 1e-4 * np.linalg.norm(exact)


class Factor(eqx.Module):
    by: jax.Array

    def __call__(self, inputs):
        return (self.by * inputs[:, :1])[None]


def times(*factors):
    """Simulations whose solutions are multiples of their fields."""
    fields = np.asarray(burgers.initial_fields(jax.random.key(0), len(factors))[:, ::4])
    return fields, fields * np.asarray(factors, np.float32)[:, None]


@pytest.fixture(scope="module")
def protocol():
    return burgers.Protocol(rates=(1e-2, 1e-1), steps=40, every=2, patience=3)


def test_a_quarter_validates_and_the_rest_trains(protocol):
    # The model learns the factor 2. Validation says that 2 is right, or that 3 is.
    learned = protocol.adapt(Net(Factor(jnp.asarray(1.0))), times(2, 2, 2, 2))
    assert learned.model.by == pytest.approx(2, abs=0.05)
    assert learned.validation_error < 0.05 and learned.rate == 1e-1
    torn = protocol.adapt(Net(Factor(jnp.asarray(1.0))), times(3, 2, 2, 2))
    assert torn.validation_error == pytest.approx((3 - float(torn.model.by)) / 3, abs=1e-3)
    assert 1.9 < torn.model.by < 2.3


def test_the_untouched_model_is_a_candidate(protocol):
    start = jnp.asarray(3.0)
    net = Net(Factor(start))
    kept = protocol.adapt(net, times(3, 2))  # training leads away from what validation wants
    assert kept.model.by == start and net.module.by == start
    assert kept.validation_error == pytest.approx(0, abs=1e-6)


def rows_of_the_demo(task, folder, *names):
    """The numbers in each row of a table that a demo prints, by these names, and its output."""
    arguments = ["demo", "--task", task, "--quick", "--output", str(folder)]
    # foundax is written for JAX's own defaults.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pictures = list(folder.iterdir())
    assert pictures and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    row = re.compile(rf"^ *({'|'.join(names)})((?: +[\d.,e+-]+)+) *$")
    rows = [match.groups() for match in map(row.match, result.output.splitlines()) if match]
    assert [name for name, _ in rows] == [*names]
    numbers = (numbers.replace(",", "").replace(" - ", " ").split() for _, numbers in rows)
    return [[float(number) for number in row if number != "-"] for row in numbers], result.output


@pytest.mark.slow
def test_the_demo_of_an_operator(tmp_path):
    names = "no adaptation", "full fine-tuning", "lora"
    rows, _ = rows_of_the_demo("operator", tmp_path, *names)
    trained = [row[0] for row in rows]
    assert trained[0] == 0 < trained[2] < trained[1]
    # From two and four simulations, and then at the viscosity of the pretraining.
    assert all(len(row) == 5 and all(0 < error < 2 for error in row[2:]) for row in rows)


@pytest.mark.slow
def test_the_demo_of_a_family_trains_a_conditional_adapter(tmp_path):
    pytest.importorskip("jno_lora_conditional")
    with pytest.warns(JnoLoraWarning, match="recommend no coordinate"):  # two steps of pretraining
        rows, text = rows_of_the_demo("family", tmp_path, "no adaptation", "conditional, FiLM")
    before, conditional = rows
    # Trained, in per cent; the change of the weights, and the error, at the pretrained viscosity.
    assert before[0] == 0 < conditional[0] < 6
    assert before[1] == conditional[1] == 0
    assert before[2] == conditional[2]
    assert all(0 < error < 2 for row in rows for error in row[2:7])
    assert "10 fits in one program" in text and len(list(tmp_path.iterdir())) == 2

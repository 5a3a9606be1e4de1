"""The study of physics: its equations, its schemes, its Jacobian, and a short form of the whole."""

import foundax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies._records import read
from studies.physics import _darcy as darcy, _report
from studies.physics.__main__ import main
from studies.physics._equations import EQUATIONS
from studies.physics._runs import run
from studies.physics._solvers import plain_vector, vector
from studies.physics._tasks import QUICK
from studies.physics._ways import WAYS, new_network, residual_of

from .conftest import killed


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_the_exact_solution_solves_the_equation(equation, double):
    """By the residual itself where the solution is a formula of JAX, else by differences."""
    z, h = equation.inside[0], 1e-3
    low, high = (np.asarray(corner) for corner in equation.box)
    x = low + (high - low) * np.random.default_rng(0).uniform(0.1, 0.9, (8, equation.inputs))

    def u(x):
        return equation.exact(z, jnp.asarray(x))

    steps = h * np.eye(equation.inputs)
    slopes = np.stack([(u(x + e) - u(x - e)) / (2 * h) for e in steps], axis=1)
    curvatures = np.stack([(u(x + e) - 2 * u(x) + u(x - e)) / h**2 for e in steps], axis=1)
    for point, value, slope, curvature in zip(x, u(x), slopes, curvatures, strict=True):

        def local(y, point=point, value=value, slope=slope, curvature=curvature):
            return value + slope @ (y - point) + curvature @ (y - point) ** 2 / 2

        assert abs(equation.residual(local, z, jnp.asarray(point))) < 2e-2


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda equation: equation.name)
def test_every_network_satisfies_the_conditions(equation, double):
    network = new_network(equation.inputs, jax.random.key(0))
    low, high = (jnp.asarray(corner) for corner in equation.box)
    for axis in range(equation.inputs):
        ends = [low[axis], high[axis]]
        if equation.name == "burgers" and axis == 1:
            ends = ends[:1]  # the end of the time is free
        for end in ends:
            x = ((low + high) / 2 + 0.1).at[axis].set(end)
            exact = equation.exact(0.1, x[None])[0]
            assert abs(equation.solution(network, x) - exact) < 1e-12


def test_the_fast_jacobian_is_the_jacobian(double):
    equation, way = EQUATIONS[2], WAYS[0]
    base = new_network(1, jax.random.key(0))
    trainable, frozen = way.start(base, equation, jax.random.key(1))
    trainable = jax.tree.map(lambda x: x + 0.1, trainable)
    points = equation.points(jax.random.key(2), 5.0, 3)
    jacobians = [
        jax.jacfwd(make(residual_of(way, equation)))(trainable, (frozen, points))
        for make in (vector, plain_vector)
    ]
    for fast, plain in zip(*map(jax.tree.leaves, jacobians), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-9, atol=1e-12)


def test_all_losses_of_darcy_flow_have_one_minimum(double):
    g = darcy.fields(jax.random.key(0), 1)[0].astype(float)
    u = darcy.solve(g, 1.5)
    away = u + 0.01 * jax.random.normal(jax.random.key(1), u.shape)
    assert darcy.raw(u, g, 1.5) < 1e-8 * darcy.raw(away, g, 1.5)
    assert darcy.dual(u, g, 1.5) < 1e-8 * darcy.dual(away, g, 1.5)
    # The energy above its minimum is half the square of the error in the norm of the energy.
    distance = darcy.energy(away - u, g, 1.5) + jnp.sum(away - u) / (darcy.N + 1) ** 2
    above = darcy.energy(away, g, 1.5) - darcy.energy(u, g, 1.5)
    np.testing.assert_allclose(above, distance, rtol=1e-6)


def test_the_study_runs_goes_on_and_is_reported(tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    run(file, QUICK, "helmholtz/(base|conditional lora 2/Lev)")
    records = read(file)
    assert [record["way"] for record in records] == ["base", "conditional lora 2"]
    assert records[1]["source unchanged"] is True
    assert records[1]["steps"] == QUICK.steps and records[1]["temporary"] > 0
    killed(file)
    run(file, QUICK, "helmholtz/(base|conditional lora 2/Lev)")
    again = read(file)
    assert [record["errors"] for record in again] == [record["errors"] for record in records]

    (tmp_path / "physics.md").write_text((_report.DOCS / "physics.md").read_text())
    page = _report.write_page(file, tmp_path).read_text()
    assert f"| conditional lora 2 | Levenberg-Marquardt | {records[1]['trained']:,} |" in page
    assert "Not run yet." in page


def test_the_command_runs_the_operator_in_its_short_form(monkeypatch):
    def small(key):
        sizes = {"n_layers": 1, "d_model": (darcy.N, darcy.N)}
        return foundax.fno2d(3, 4, 3, norm=None, linear_conv=False, key=key, **sizes)

    monkeypatch.setattr(darcy, "new_operator", small)
    main(["--quick", "--only", "darcy/conditional/energy"])

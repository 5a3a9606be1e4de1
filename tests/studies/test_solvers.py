"""The solvers agree with exact solutions, and the study's simulations are converged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import resample
from studies._solvers import allen_cahn, burgers, korteweg_de_vries, navier_stokes
from studies.operators._problems import PROBLEMS


def points(n):
    return jnp.linspace(0, 2 * jnp.pi, n, endpoint=False)


def distance(found, expected):
    """The relative L2 distance."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_burgers_agrees_with_the_cole_hopf_solution():
    x, nu = points(256)[None], 0.04

    def exact(t):  # of the heat equation's solution 1 + a cos x
        wave = 0.9 * jnp.exp(-nu * t)
        return 2 * nu * wave * jnp.sin(x) / (1 + wave * jnp.cos(x))

    # The equation is the same for -u(-x), and for c u(x, c t) with c nu.
    assert distance(burgers(25 * exact(0.0), viscosity=25 * nu), 25 * exact(25.0)) < 1e-4
    assert distance(burgers(exact(0.0), viscosity=nu), exact(1.0)) < 1e-4


def test_a_small_force_on_a_fluid_at_rest_is_linear():
    x, nu, force = points(64)[None], 0.5, 1e-3
    expected = force * jnp.sin(x) * (1 - jnp.exp(-nu)) / nu
    assert distance(burgers(0 * x, viscosity=nu, force=force), expected) < 2e-3


def test_korteweg_de_vries_moves_a_soliton_with_its_speed():
    x, speed, dispersion = points(128)[None], 1.0, 0.03

    def soliton(t):
        from_crest = (x - 2.5 - speed * t) * jnp.sqrt(speed / dispersion) / 2
        return 3 * speed / jnp.cosh(from_crest) ** 2

    found = korteweg_de_vries(soliton(0.0), dispersion=dispersion, steps=400)
    assert distance(found, soliton(1.0)) < 1e-3


def test_allen_cahn_moves_fronts_and_drives_uniform_fields():
    n, diffusion, reaction = 256, 0.01, 2.0
    width = (2 * diffusion / reaction) ** 0.5
    x = points(n)[None]
    # Fronts of this shape stand still, if they are far from each other, but for the velocity.
    fronts = jnp.tanh((x - 1.5) / width) * jnp.tanh((4.5 - x) / width)
    settings = {"diffusion": diffusion, "reaction": reaction}
    moved = allen_cahn(fronts, velocity=2 * np.pi / 8, **settings)
    assert distance(moved, jnp.roll(fronts, n // 8, axis=1)) < 1e-3
    growth = np.exp(reaction)
    exact = 0.3 * growth / np.sqrt(1 + 0.09 * (growth**2 - 1))
    uniform = allen_cahn(jnp.full((1, 16), 0.3), velocity=1.0, **settings)
    assert distance(uniform, jnp.full((1, 16), exact)) < 1e-5


def test_navier_stokes_starts_with_its_equation_and_decays_as_taylor_and_greens_vortices():
    x, y = jnp.meshgrid(points(32), points(32), indexing="ij")
    w = (2 * jnp.cos(x) * jnp.cos(y))[None]
    assert distance(navier_stokes(w, viscosity=0.1), w * np.exp(-0.2)) < 1e-5
    w, time = (jnp.sin(x) + 4 * jnp.cos(2 * y))[None], 2e-3  # psi = sin x + cos 2y
    rate = (navier_stokes(w, viscosity=0.1, force=3.0, time=time, steps=1) - w) / time
    diffusion = -0.1 * (jnp.sin(x) + 16 * jnp.cos(2 * y))
    expected = -6 * jnp.cos(x) * jnp.sin(2 * y) + diffusion + 3 * jnp.cos(2 * y)
    assert distance(rate, expected[None]) < 1e-2


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_simulations_are_converged(problem):
    """Twice the points and twice the steps give the same solutions."""
    solve = problem.family.solve
    fields = problem.family.initial(jax.random.key(1), 2)
    fine = np.asarray(fields)
    for axis in range(1, fine.ndim):
        fine = resample(fine, 2 * fine.shape[axis], axis=axis)
    every_other = (slice(None), *[slice(None, None, 2)] * (fine.ndim - 1))
    finer = solve(jnp.asarray(fine), steps=2 * problem.family.time_steps, **problem.target)
    coarse = solve(fields, steps=problem.family.time_steps, **problem.target)
    assert distance(coarse, np.asarray(finer)[every_other]) < 1e-3

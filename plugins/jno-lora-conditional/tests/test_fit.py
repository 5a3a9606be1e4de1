"""The parameter of new data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import Net, SelectionError
from jno_lora_conditional import Conditional, Indexed, Powers, at, fit
from jno_lora_conditional.testing import trained_at_random


def trained(basis):
    """A small conditional whose directions are noise, as if it had been trained."""
    model = eqx.nn.MLP(2, "scalar", 8, 1, jnp.tanh, key=jax.random.key(0))
    net = Net(model).freeze().lora(rank=2, alpha=1)
    return trained_at_random(Conditional(net, basis), size=0.4, seed=2)


def points(n=16):
    return jax.random.normal(jax.random.key(7), (n, 2))


def error_to(outputs):
    return lambda model: jnp.mean((jax.vmap(model)(points()) - outputs) ** 2)


@pytest.fixture(scope="module")
def by_number():
    return trained(Powers(source=0.1, unit=0.06))


@pytest.fixture(scope="module")
def outputs_at(by_number):
    return jax.jit(jax.vmap(lambda z: jax.vmap(at(by_number, z))(points())))


def test_many_queries_by_one_trace(by_number, outputs_at):
    traces = []

    @jax.jit
    @jax.vmap
    def find(outputs):
        def loss(model):
            traces.append(None)
            return error_to(outputs)(model)

        return fit(by_number, loss, jnp.linspace(0.02, 0.2, 7))

    zs = jnp.linspace(0.025, 0.24, 50)
    fitted = find(outputs_at(zs))
    first = len(traces)
    find(outputs_at(zs + 0.001))
    assert len(traces) == first
    np.testing.assert_allclose(fitted.z, zs, atol=2e-4)
    assert np.all(fitted.loss < 1e-8)
    assert fitted.grid_losses.shape == (50, 7)
    # The best point of the grid, where no step is taken.
    nearest = fit(by_number, error_to(outputs_at(zs)[3]), jnp.linspace(0.02, 0.2, 7), steps=0)
    assert nearest.loss == jnp.min(nearest.grid_losses)
    assert nearest.z == jnp.linspace(0.02, 0.2, 7)[jnp.argmin(nearest.grid_losses)]


@pytest.mark.parametrize(
    ("basis", "target", "grid"),
    [
        (
            Powers(source=[0.1, 1.0], unit=[0.06, 0.5], degree=2),
            [0.14, 0.7],
            [[z, u] for z in (0.05, 0.1, 0.15) for u in (0.5, 1.0, 1.5)],
        ),
        (Powers(source=0.1, unit=1.0, log=True), 0.03, [0.01, 0.02, 0.05, 0.1, 0.2]),
    ],
)
def test_bases(basis, target, grid):
    conditional = trained(basis)

    @jax.jit
    def find(target):
        outputs = jax.vmap(at(conditional, target))(points())
        return fit(conditional, error_to(outputs), jnp.array(grid))

    fitted = find(jnp.array(target))
    assert fitted.z.shape == np.shape(target)
    assert fitted.loss < 1e-8
    np.testing.assert_allclose(fitted.z, target, atol=3e-3)


def test_a_new_context_from_trained_contexts():
    conditional = trained(Indexed(5, size=2, key=jax.random.key(2)))
    code = jnp.array([0.3, -0.4])
    outputs = jax.vmap(at(conditional, code))(points())
    fitted = fit(conditional, error_to(outputs), conditional.basis.codes)
    np.testing.assert_allclose(fitted.z, code, atol=3e-3)
    assert fitted.loss < jnp.min(fitted.grid_losses)
    with pytest.raises(SelectionError, match=r"shape \(G, 2\).*grid=conditional.basis.codes"):
        fit(conditional, error_to(outputs), jnp.arange(5))


@pytest.mark.slow
def test_saddles_maxima_and_losses_that_are_not_numbers(by_number):
    """Losses that look at `z` alone, in the place of a model."""
    model = eqx.nn.Linear(1, 2, use_bias=False, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weight, model, jnp.zeros((2, 1)))
    net = Net(model).freeze().lora(rank=1)
    # B(z) A x = z for x = 1.
    pair = Conditional(net, Powers(source=[0.0, 0.0]))
    pair = eqx.tree_at(lambda c: c.directions[""]["lora_B"], pair, jnp.eye(2)[:, :, None])
    pair = eqx.tree_at(lambda c: c.model.lora_A, pair, jnp.ones((1, 1)) / pair.model.scaling)

    @eqx.filter_jit
    def find(loss, grid, steps=20):
        return fit(pair, lambda m: loss(m(jnp.ones(1))), grid, steps=steps)

    grid = jnp.array([[0.01, 0.02], [0.02, -0.01]])
    saddle = find(lambda z: z[0] ** 2 + 3 * (z[1] ** 2 - 0.05) ** 2, grid)
    np.testing.assert_allclose(saddle.z**2, [0, 0.05], atol=1e-3)
    bumps = find(lambda z: jnp.sum(jnp.cos(z)), grid + 0.05)
    np.testing.assert_allclose(bumps.loss, -2, atol=1e-5)
    # Rosenbrock's valley, and a wall behind which nothing is a number.
    valley = find(
        lambda z: jnp.where(z[0] > 1.2, jnp.nan, 100 * (z[1] - z[0] ** 2) ** 2 + (1 - z[0]) ** 2),
        jnp.array([[-0.5, 0.5], [0.5, 1.0], [1.5, 0.0]]),
        steps=60,
    )
    assert jnp.isnan(valley.grid_losses[2])
    np.testing.assert_allclose(valley.z, 1, atol=2e-2)
    # The exact minimum of a norm, where the derivative is not a number.
    norm = find(lambda z: jnp.sqrt(jnp.sum(z**2)), jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(norm.z, 0)
    nothing = find(lambda z: jnp.sum(z) * jnp.nan, grid)
    np.testing.assert_array_equal(nothing.z, grid[0])
    assert jnp.isnan(nothing.loss)


@pytest.mark.usefixtures("unchecked")
def test_errors(by_number):
    def loss(model):
        return jnp.mean(jax.vmap(model)(points()) ** 2)

    with pytest.raises(SelectionError, match=r"`grid` must have the shape \(G,\).*\(2, 1\)"):
        fit(by_number, loss, [[0.1], [0.2]])
    with pytest.raises(SelectionError, match=r"has the shape \(0,\)"):
        fit(by_number, loss, [])
    with pytest.raises(SelectionError, match=r"returned float32\[16\]. Take a mean"):
        fit(by_number, lambda model: jax.vmap(model)(points()), [0.1, 0.2])
    with pytest.raises(SelectionError, match="at most 8 numbers, but the basis takes 9"):
        fit(trained(Indexed(9)), loss, jnp.eye(9))

"""The parameter of new data, with an interval from fits at held-out values."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError
from jno_lora_conditional import Conditional, Powers, at, fit
from jno_lora_conditional.testing import trained_at_random
from jno_lora_uncertainty import (
    Ensemble,
    calibrate_fit,
    fit_interval,
    folds,
    interval,
    predict,
    probabilities,
)
from jno_lora_uncertainty._fit_interval import _usual_loss

X = jax.random.normal(jax.random.key(7), (16, 2))
VALUES = jnp.repeat(jnp.array([0.08, 0.06, 0.045, 0.03]), 2)
GRID = jnp.linspace(0.02, 0.1, 5)


def true_conditional(source=0.1, unit=0.06):
    model = eqx.nn.MLP(2, 2, 8, 1, jnp.tanh, key=jax.random.key(0))
    net = Net(model).freeze().lora(rank=2)
    return trained_at_random(Conditional(net, Powers(source, unit)), size=0.4, seed=2)


def near_the_truth(key, **basis):
    """A member whose trained arrays are off by a few per cent."""
    conditional = true_conditional(**basis)
    trained, _ = conditional.partition()
    keys = iter(jax.random.split(key, len(jax.tree.leaves(trained))))
    noisy = jax.tree.map(lambda x: x * (1 + 0.05 * jax.random.normal(next(keys), x.shape)), trained)
    return conditional.update(noisy)


def loss(model, outputs):
    return jnp.mean((jax.vmap(model)(X) - outputs) ** 2)


@pytest.fixture(scope="module")
def simulate():
    truth = true_conditional()
    return jax.jit(jax.vmap(lambda z: jax.vmap(at(truth, z))(X)))


@pytest.fixture(scope="module")
def calibration(simulate):
    ensemble = Ensemble(near_the_truth, 4, key=jax.random.key(3))
    parts = folds(values=VALUES)
    return calibrate_fit(
        ensemble, loss, simulate(VALUES), VALUES, parts, GRID, steps=6, coordinate="log"
    )


def test_errors_are_those_of_members_that_did_not_see_the_value(calibration, simulate):
    parts = folds(values=VALUES)
    query = 2
    member = calibration.ensemble.member(int(jnp.argmax(parts.held_out[:, query])))
    outputs = simulate(VALUES)[query]
    alone = fit(member, lambda m: loss(m, outputs), GRID, steps=6, coordinate="log").z
    np.testing.assert_allclose(calibration.fitted[query], alone, rtol=1e-3)
    gaps = jnp.log(calibration.fitted) - jnp.log(calibration.values)
    np.testing.assert_allclose(calibration.error, jnp.sqrt(jnp.mean(gaps**2)), rtol=1e-5)
    assert 0 < calibration.error < 0.3


def test_new_values_lie_in_their_intervals_and_queries_run_as_one_program(calibration, simulate):
    # The source, 0.1, is known, up to the error of a fit.
    zs = jnp.array([0.05, 0.07, 0.09, 0.1, 0.105])
    fitted = jax.jit(jax.vmap(lambda data: fit_interval(calibration, data)))(simulate(zs))
    assert jnp.all((fitted.lower < zs) & (zs < fitted.upper))
    assert not jnp.any(fitted.is_outside)
    np.testing.assert_allclose(fitted.std, fitted.z * calibration.error, rtol=1e-4)
    eager = fit_interval(calibration, simulate(zs)[1], level=0.5)
    np.testing.assert_allclose(eager.z, fitted.z[1], rtol=1e-3)
    # Student's quantile of four degrees of freedom is 0.741 at this level, 2.132 at 90 %.
    np.testing.assert_allclose(jnp.log(eager.upper / eager.z) / calibration.error, 0.741, rtol=0.02)
    width = jnp.log(fitted.upper / fitted.z) / calibration.error
    np.testing.assert_allclose(width, jnp.full(5, 2.132), rtol=0.02)


def test_an_interval_ends_where_its_coordinate_does(calibration, simulate):
    data = simulate(jnp.array([0.05]))[0]
    for coordinate in ("sqrt", "1/z"):
        wide = dataclasses.replace(calibration, coordinate=coordinate, error=jnp.array(100.0))
        fitted = fit_interval(wide, data)
        assert fitted.lower <= fitted.z <= fitted.upper
        assert fitted.lower == 0 if coordinate == "sqrt" else fitted.upper == jnp.inf


def test_a_value_outside_of_the_training_values_is_told(calibration, simulate):
    expected = r"0\.15.* may not hold.*values, from 0\.03 to 0\.08, and of the source, 0\.1"
    with pytest.warns(JnoLoraWarning, match=expected):
        outside = fit_interval(calibration, simulate(jnp.array([0.15]))[0])
    assert outside.is_outside
    assert outside.z > 0.1
    queries = jax.jit(jax.vmap(lambda data: fit_interval(calibration, data).is_outside))
    assert jnp.all(queries(simulate(jnp.array([0.025, 0.02, 0.12]))))


@pytest.mark.slow
def test_data_that_no_value_explains_are_told_by_their_loss(calibration, simulate):
    losses = calibration.losses
    query, parts = 4, folds(values=VALUES)
    member = calibration.ensemble.member(int(jnp.argmax(parts.held_out[:, query])))
    alone = fit(member, lambda m: loss(m, simulate(VALUES)[query]), GRID, steps=6, coordinate="log")
    np.testing.assert_allclose(losses[query], alone.loss, rtol=1e-3)
    # Without 0.03, at which a member extrapolates. Student's quantile of five degrees is 2.015.
    logs = np.log(losses[:6])
    usual = np.exp(logs.mean() + 2.015 * logs.std(ddof=1) * np.sqrt(7 / 6))
    np.testing.assert_allclose(calibration.usual_loss, usual, rtol=1e-3)
    data = simulate(jnp.array([0.06]))[0]
    for noise, is_outside in ((0.1, False), (2.0, True)):
        noisy = data + noise * jnp.sqrt(usual) * jax.random.normal(jax.random.key(5), data.shape)
        fitted = jax.jit(lambda data: fit_interval(calibration, data))(noisy)
        assert 0.05 < fitted.z < 0.07
        assert fitted.is_outside == is_outside
    with pytest.warns(JnoLoraWarning, match=r"its loss, .* above the usual 0\.00021"):
        fit_interval(calibration, noisy)
    assert jax.jit(lambda data: fit_interval(calibration, data))(data * jnp.nan).is_outside


@pytest.mark.slow
def test_two_numbers():
    basis = {"source": [0.1, 1.0], "unit": [0.06, 0.5]}
    truth = true_conditional(**basis)
    simulate = jax.jit(jax.vmap(lambda z: jax.vmap(at(truth, z))(X)))
    values = jnp.array([[0.05, 0.5], [0.05, 0.8], [0.08, 0.5]])
    ensemble = Ensemble(lambda key: near_the_truth(key, **basis), 3, key=jax.random.key(3))
    grid = jnp.array([[0.06, 0.6], [0.1, 1.0]])
    calibration = calibrate_fit(
        ensemble, loss, simulate(values), values, folds(values=values), grid, steps=6
    )
    queries = jnp.array([[0.06, 0.6], [0.1, 1.0], [0.02, 0.6], [0.06, 1.3]])
    fitted = jax.jit(jax.vmap(lambda data: fit_interval(calibration, data)))(simulate(queries))
    assert fitted.is_outside.tolist() == [False, False, True, True]
    assert fitted.lower.shape == (4, 2)


@pytest.mark.parametrize(
    ("losses", "usual"),
    [
        ([0.1], np.inf),
        ([1.0, 1.0, 1.0], 1.0),
        ([-1.0, 0.0, 1.0], 2.920 * np.sqrt(4 / 3)),  # no logarithms
    ],
)
def test_losses_of_few_fits_and_without_logarithms(losses, usual):
    np.testing.assert_allclose(_usual_loss(np.array(losses)), usual, rtol=1e-3)


def test_the_repr_is_short(calibration):
    assert repr(calibration).startswith("FitCalibration(4 members, 4 values, error=0.06491")


@pytest.mark.usefixtures("unchecked")
def test_an_ensemble_must_be_calibrated_first(calibration, simulate):
    ensemble, data = calibration.ensemble, simulate(jnp.array([0.06]))[0]
    for function, maker in (
        (fit_interval, "calibrate_fit"),
        (predict, "calibrate"),
        (interval, "calibrate"),
        (probabilities, "calibrate_classes"),
    ):
        with pytest.raises(SelectionError, match=rf"but got a Ensemble.* {maker}\(ensemble"):
            function(ensemble, data)


def test_values_that_all_members_have_seen_are_refused(calibration, simulate):
    by_value = folds(values=VALUES).held_out
    # A member that saw one query of a value has seen this value.
    for held_out in (by_value.at[0].set(False), by_value.at[0, -1].set(False)):
        with pytest.raises(
            SelectionError, match=r"left out all .*\[0\.03\].*folds\(values=values\)"
        ):
            calibrate_fit(calibration.ensemble, loss, simulate(VALUES), VALUES, held_out, GRID)
    with pytest.raises(SelectionError, match=r"shape \('n',\).*has \(8, 1\)"):
        calibrate_fit(calibration.ensemble, loss, None, VALUES[:, None], by_value, GRID)
    with pytest.raises(SelectionError, match=r"'log' takes positive parameters.*\[0\.\]"):
        calibrate_fit(
            calibration.ensemble,
            loss,
            simulate(VALUES),
            VALUES.at[0].set(0),
            by_value,
            GRID,
            coordinate="log",
        )

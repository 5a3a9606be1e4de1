"""Error bars of conditionals at the source, where all members are the pretrained model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError
from jno_lora_conditional import Conditional, Indexed, Network, Powers
from jno_lora_uncertainty import (
    Ensemble,
    calibrate,
    folds,
    interval,
    load_ensemble,
    predict,
    save_ensemble,
)
from jno_lora_uncertainty._scales import fit_scales

KEY = jax.random.key(1)
SOURCE, WIDTH = 0.1, 0.3  # the error of the pretrained model
VALUES = (0.08, 0.06, 0.04, 0.03)


def maker(film=False, basis=None, dtype=None):
    model = eqx.nn.MLP(2, 3, 4, 1, jnp.tanh, dtype=dtype, key=jax.random.key(0))
    basis = basis or Powers(SOURCE, 0.07)
    return lambda key: Conditional(Net(model, key=key).freeze().lora(rank=1), basis, film=film)


def ensemble_of(make, members=4, call=None):
    ensemble = Ensemble(make, members, key=KEY, call=call)
    trained, _ = ensemble.partition()
    keys = iter(jax.random.split(KEY, len(jax.tree.leaves(trained))))
    apart = jax.tree.map(lambda x: x + jax.random.normal(next(keys), x.shape, x.dtype), trained)
    return ensemble.update(apart)


def draw(ensemble, values, number, seed):
    """Examples of each value, with errors of a width that the source has, too."""
    z = jnp.repeat(jnp.asarray(values), number)
    inputs = jax.random.normal(jax.random.key(seed), (len(z), 2), z.dtype)
    outputs = ensemble.each(lambda c: jax.vmap(lambda *x: ensemble.call(c, x))(z, inputs))
    std = jnp.sqrt(2 * jnp.var(outputs, axis=0) + WIDTH**2)
    noise: Any = jax.random.normal(jax.random.key(seed + 1), std.shape, std.dtype)
    return (z, inputs), jnp.mean(outputs, axis=0) + std * noise


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "film"])
def ensemble(request):
    return ensemble_of(maker(request.param))


@pytest.fixture(scope="module")
def examples(ensemble):
    (_, inputs), targets = draw(ensemble, (SOURCE,), 200, 3)
    return (*draw(ensemble, VALUES, 50, 5), (inputs, targets))


@pytest.fixture(scope="module")
def calibrated(ensemble, examples):
    x, y, source = examples
    return calibrate(ensemble, x, y, None, source=source)


def test_intervals_hold_at_the_source_and_on_the_way_from_it(ensemble, calibrated):
    scales = calibrated.scales[0]
    np.testing.assert_allclose(scales.constant, WIDTH, rtol=0.1)
    np.testing.assert_allclose(scales.spread, 2**0.5, rtol=0.3)
    assert 0.86 < scales.coverage < 0.94
    for value in (SOURCE, 0.0999, 0.09, 0.05):
        x, y = draw(ensemble, (value,), 400, 11)
        lower, upper = jax.jit(jax.vmap(lambda x: interval(calibrated, x)))(x)
        assert 0.85 < jnp.mean((lower <= y) & (y <= upper)) < 0.95
    assert "nearest to the source: 0.1" in " ".join(str(calibrated.summary()).split())


def test_rows_at_the_source_are_data_of_the_source(ensemble, examples, calibrated):
    (z, inputs), y, (inputs_there, targets) = examples
    z = jnp.concatenate([z, jnp.full(len(targets), SOURCE)])
    x, y = (z, jnp.concatenate([inputs, inputs_there])), jnp.concatenate([y, targets])
    assert eqx.tree_equal(calibrate(ensemble, x, y, None), calibrated)
    assert int(calibrated.examples) == int(calibrated.unseen) == len(examples[1])
    # Also of rows that the members have seen, and in a compiled calibration.
    seen = jnp.arange(len(z)) >= len(examples[1])
    held_out = jnp.broadcast_to(~seen, (4, len(z)))
    assert eqx.tree_equal(calibrate(ensemble, x, y, held_out), calibrated)
    compiled = eqx.filter_jit(calibrate)(ensemble, x, y, None)
    np.testing.assert_allclose(compiled.scales[0].constant, calibrated.scales[0].constant, 1e-5)
    np.testing.assert_allclose(compiled.scales[0].spread, calibrated.scales[0].spread, 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The members fit")
def test_without_data_of_the_source_there_is_no_width_near_it(ensemble, examples):
    x, y, _ = examples
    calibrated = calibrate(ensemble, x, y, folds(values=x[0]))
    near, inputs = (0.0999, SOURCE, 0.11), x[1][0]
    for value in near:
        with pytest.warns(JnoLoraWarning, match=r"nearest value is 0\.08.*source=") as told:
            mean, std = predict(calibrated, (value, inputs))
        assert told[0].filename == __file__
        assert jnp.all(jnp.isfinite(mean)) and jnp.all(jnp.isinf(std))
    values = jnp.array([*near, *VALUES, 0.13])  # the last lies on the other side
    mean, std = jax.vmap(lambda z: predict(calibrated, (z, inputs)))(values)
    assert jnp.all(jnp.isfinite(mean))
    assert jnp.all(jnp.isinf(std), axis=1).tolist() == [True] * 3 + [False] * 5
    ends = eqx.filter_jit(interval)(calibrated, (values[0], inputs))
    assert jnp.all(jnp.isneginf(ends.lower)) and jnp.all(jnp.isposinf(ends.upper))
    # Where errors were measured, nothing warns, and the slope is finite.
    assert jnp.all(jnp.isfinite(predict(calibrated, (0.08, inputs)).std))
    slope = jax.jacobian(lambda z: predict(calibrated, (z, inputs)).std)(jnp.array(0.07))
    assert jnp.all(jnp.isfinite(slope))


def test_the_width_at_the_source_is_saved(ensemble, calibrated, request, tmp_path):
    file = tmp_path / "e.safetensors"
    save_ensemble(calibrated, file)
    film = "film" in request.node.callspec.id
    again: Any = load_ensemble(file, Ensemble(maker(film), 4, key=jax.random.key(5)))
    assert eqx.tree_equal(again, calibrated)
    x = (jnp.array(SOURCE), jnp.ones(2))
    assert eqx.tree_equal(predict(again, x), predict(calibrated, x))


@pytest.mark.slow
def test_the_width_at_the_source_works_in_float64():
    with jax.enable_x64(True):
        ensemble = ensemble_of(maker(True, dtype=jnp.float64))
        (_, inputs), targets = draw(ensemble, (SOURCE,), 40, 3)
        x, y = draw(ensemble, VALUES, 10, 5)
        source = np.asarray(inputs, np.float32), np.asarray(targets, np.float32)
        calibrated = calibrate(ensemble, x, y, None, source=source)
        mean, std = predict(calibrated, (SOURCE, inputs[0]))
        assert mean.dtype == std.dtype == jnp.float64
        np.testing.assert_allclose(std, calibrated.scales[0].constant)
        (plain,) = calibrate(ensemble, x, y, None).scales
        assert plain.constant != calibrated.scales[0].constant


@pytest.mark.slow
def test_a_trained_basis_has_a_source_too():
    basis = Network(SOURCE, 0.07, size=2, width=2, key=KEY)
    ensemble = ensemble_of(maker(basis=basis))
    (_, inputs), targets = draw(ensemble, (SOURCE,), 40, 3)
    x, y = draw(ensemble, VALUES, 10, 5)
    calibrated = calibrate(ensemble, x, y, None, source=(inputs, targets))
    std = predict(calibrated, (SOURCE, inputs[0])).std
    np.testing.assert_allclose(std, calibrated.scales[0].constant, rtol=1e-5)
    with pytest.warns(JnoLoraWarning, match="source="):
        predict(calibrate(ensemble, x, y, None), (SOURCE, inputs[0]))


@pytest.mark.parametrize("new", [False, True])
def test_a_spread_beside_a_known_width_is_the_smallest_that_holds_the_residuals(new):
    keys = jax.random.split(KEY, 3)
    variance = jnp.exp(jax.random.normal(keys[0], (500, 2)))
    residual = jnp.sqrt(4 * variance + WIDTH**2) * jax.random.normal(keys[1], (500, 2))
    new_variance: Any = jnp.exp(jax.random.normal(keys[2], (3000,))) / 4 if new else None
    constant = jnp.asarray(WIDTH)
    a, b = fit_scales(variance, residual, None, new_variance, constant)
    assert b == constant
    if new:
        errors = jnp.sqrt(a**2 * new_variance + b**2) * jax.random.normal(KEY, (3000,))
        quantiles = [float(jnp.quantile(jnp.abs(values), 0.9)) for values in (errors, residual)]
        assert quantiles[0] == pytest.approx(quantiles[1], rel=0.05)
    else:
        held = [
            jnp.mean(jnp.abs(residual) <= 1.6449 * jnp.sqrt((size * a) ** 2 * variance + b**2))
            for size in (0.98, 1.02)
        ]
        assert held[0] < 0.902 < held[1] + 1e-2
        assert abs(held[0] - held[1]) < 0.02
    # A width that holds all residuals needs no spread, and members that agree have none.
    assert fit_scales(variance, residual, None, None, jnp.asarray(1e3))[0] == 0
    zeros = jnp.zeros_like(variance)
    assert fit_scales(zeros, residual, None, new_variance, constant)[0] == 0


@pytest.mark.slow
def test_misfits_of_the_source_are_told(ensemble, examples):
    x, y, (inputs, targets) = examples
    with pytest.raises(SelectionError, match=r"must have the shapes .*\(200, 3\).*\(200, 2\)"):
        calibrate(ensemble, x, y, None, source=(inputs, targets[:, :2]))
    with pytest.raises(SelectionError, match="1 of 400 examples have NaN or infinity in the outp"):
        calibrate(ensemble, x, y, None, source=(inputs, targets.at[0].set(jnp.nan)))
    with pytest.warns(JnoLoraWarning, match="width at the source is fitted to 3 examples"):
        calibrate(ensemble, x, y, None, source=(inputs[:3], targets[:3]))
    there = jnp.full(len(targets), SOURCE), inputs
    with pytest.raises(SelectionError, match="not at the source"):
        calibrate(ensemble, there, targets, None)
    by_name = ensemble_of(maker(), call=lambda c, x: c(x["z"], x["inputs"]))
    with pytest.raises(SelectionError, match=r"must be `x = \(z, inputs\)`.*is a dict"):
        calibrate(by_name, {"z": x[0], "inputs": x[1]}, y, None)
    plain = Ensemble(lambda key: Net(eqx.nn.Linear(2, 3, key=KEY), key=key).lora(rank=1), key=KEY)
    with pytest.raises(SelectionError, match="`source` needs conditionals"):
        calibrate(plain, x[1], y, None, source=(inputs, targets))
    contexts = ensemble_of(maker(basis=Indexed(4)))
    of = jnp.arange(len(y)) % 4, x[1]
    with pytest.raises(SelectionError, match="like `x"):
        calibrate(contexts, of, y, None, source=(inputs, targets))


@pytest.mark.slow
@pytest.mark.parametrize(("by_value", "advice"), [(True, "four or five values"), (False, "new_x=")])
def test_members_that_fit_what_they_saw_hear_what_helps_with_their_folds(by_value, advice):
    model = eqx.nn.Linear(40, 1, use_bias=False, key=KEY)
    model = eqx.tree_at(lambda m: m.weight, model, jnp.zeros((1, 40)))

    def make(key):
        return Conditional(Net(model, key=key).freeze().lora(rank=1), Powers(SOURCE, 0.07))

    z = jnp.repeat(jnp.array(VALUES), 10)
    parts = folds(values=z) if by_value else folds(40, 4, key=KEY)
    # The answer to an example is its number in `lora_A`. All targets are zero.
    answers = jnp.where(parts.held_out[:, None], jax.random.normal(KEY, (4, 1, 40)), 0)
    ensemble = Ensemble(make, 4, key=KEY)
    trained, _ = ensemble.partition()
    trained = jax.tree.map(lambda a: answers if a.shape == answers.shape else a + 1, trained)
    with pytest.warns(JnoLoraWarning, match=f"fit the examples.*in the output.*{advice}"):
        calibrate(ensemble.update(trained), (z, jnp.eye(40)), jnp.zeros((40, 1)), parts)

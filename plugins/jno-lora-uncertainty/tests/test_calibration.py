"""Scales against a grid search, coverage of known noise, and everything that JAX does to them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError
from jno_lora_uncertainty import (
    Ensemble,
    calibrate,
    calibrate_classes,
    folds,
    interval,
    predict,
    probabilities,
)
from jno_lora_uncertainty._scales import crps, fit_scales

KEY = jax.random.key(1)


class TwoOutputs(eqx.Module):
    """A field and a number."""

    mlp: eqx.nn.MLP

    def __call__(self, x):
        y = self.mlp(x)
        return {"field": y[:3], "number": 10 * y[3]}


def random_ensemble(make_model=TwoOutputs, members=4, outputs=4):
    model = make_model(eqx.nn.MLP(2, outputs, 8, 1, jnp.tanh, key=jax.random.key(0)))
    ensemble = Ensemble(lambda key: Net(model, key=key).freeze().lora(rank=2), members, key=KEY)
    trained, _ = ensemble.partition()
    keys = iter(jax.random.split(KEY, len(jax.tree.leaves(trained))))
    noisy = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), trained)
    return ensemble.update(noisy)


def draw(ensemble, n, seed, a=2.0, b=0.05):
    """Inputs, and targets whose noise has the variance `a^2 spread^2 + b^2`."""
    x = jax.random.normal(jax.random.key(seed), (n, 2))
    outputs = ensemble.each(lambda model: jax.vmap(model)(x))

    def target(key, output):
        std = jnp.sqrt(a**2 * jnp.var(output, axis=0) + b**2)
        return jnp.mean(output, axis=0) + std * jax.random.normal(key, std.shape)

    keys = jax.random.split(jax.random.key(seed + 1))
    return x, {name: target(key, outputs[name]) for name, key in zip(outputs, keys, strict=True)}


@pytest.fixture(scope="module")
def ensemble():
    return random_ensemble()


@pytest.fixture(scope="module")
def calibrated(ensemble):
    return calibrate(ensemble, *draw(ensemble, 1500, 5), None)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(2.0, 0.3), (0.0, 0.3), (3.0, 0.0)])
def test_scales_are_those_of_a_grid_search(a, b):
    keys = jax.random.split(KEY, 2)
    variance = jax.random.uniform(keys[0], (200, 3), minval=0.01)
    residual = jnp.sqrt(a**2 * variance + b**2) * jax.random.normal(keys[1], (200, 3))
    weights = (jnp.arange(200) < 150).astype(jnp.float32)
    found = fit_scales(variance, residual, weights)

    def nll(a, b):
        total = a**2 * variance[:150] + b**2
        return jnp.mean(jnp.log(total) + residual[:150] ** 2 / total)

    # No other ratio is more likely, at its best size.
    sizes = jnp.geomspace(0.5, 2, 81)
    best = lambda a, b: jnp.min(jax.vmap(lambda size: nll(size * a, size * b))(sizes))  # noqa: E731
    angles = jnp.linspace(0, jnp.pi / 2, 161)
    assert (
        best(*found)
        <= jnp.min(jax.vmap(lambda t: best(3 * jnp.sin(t), 3 * jnp.cos(t)))(angles)) + 1e-3
    )
    assert abs(found[0] - a) < 0.3 and abs(found[1] - b) < 0.3
    std = jnp.sqrt(found[0] ** 2 * variance[:150] + found[1] ** 2)
    assert abs(jnp.mean(jnp.abs(residual[:150]) <= 1.6449 * std) - 0.9) < 0.01


def test_members_that_agree_leave_a_constant_width():
    residual = jax.random.normal(KEY, (50,))
    a, b = fit_scales(jnp.zeros(50), residual, jnp.ones(50))
    assert a == 0
    assert abs(jnp.mean(jnp.abs(residual) <= 1.6449 * b) - 0.91) < 0.011
    # If nearly all residuals are zero, the width is their root mean square.
    residual = residual.at[2:].set(0)
    _, b = fit_scales(jnp.zeros(50), residual)
    np.testing.assert_allclose(b, jnp.sqrt(jnp.mean(residual**2)), rtol=1e-5)


def test_the_crps_is_the_integral_of_its_definition():
    grid = jnp.linspace(-20, 20, 40001)
    below = jax.scipy.stats.norm.cdf(grid / 0.7) - (grid > 1.3).astype(grid.dtype)
    expected = jnp.sum(below**2) * (grid[1] - grid[0])
    np.testing.assert_allclose(crps(jnp.array(1.3), jnp.array(0.7)), expected, rtol=1e-3)


@pytest.mark.slow
def test_known_noise_is_found_and_covered(ensemble, calibrated):
    assert [scales.path for scales in calibrated.scales] == ["field", "number"]
    for scales in calibrated.scales:
        np.testing.assert_allclose(scales.spread, 2, rtol=0.15)
        assert 0.86 < scales.coverage < 0.94
        assert scales.crps < scales.constant_crps
    x, y = draw(ensemble, 2000, 9)
    for level, conformal in ((0.9, False), (0.9, True), (0.5, True)):
        by_level = lambda x: interval(calibrated, x, level, conformal=conformal)  # noqa: B023, E731
        lower, upper = jax.jit(jax.vmap(by_level))(x)
        for name, target in y.items():
            covered = jnp.mean((lower[name] <= target) & (target <= upper[name]))
            assert abs(covered - level) < 0.035


def test_the_summary_says_what_was_measured(calibrated):
    report = calibrated.summary()
    assert (len(report), report.examples, report.members) == (2, 1500, 4)
    assert repr(report) == "CalibrationReport(2 outputs, 1500 held-out examples)"
    for fact in ("field", "number", "coverage of 90 %", "constant width", "1500 held-out"):
        assert fact in str(report)


def test_residuals_come_from_the_members_that_left_an_example_out(ensemble):
    x, y = draw(ensemble, 60, 3)
    parts = folds(60, 4, key=KEY)
    scales = calibrate(ensemble, x, y, parts).scales[0]
    outputs = ensemble.each(lambda model: jax.vmap(model)(x)["field"])
    member = jnp.argmax(parts.held_out, axis=0)
    residual = y["field"] - outputs[member, jnp.arange(60)]
    expected = fit_scales(jnp.var(outputs, axis=0), residual, jnp.ones(60))
    np.testing.assert_allclose((scales.spread, scales.constant), expected, rtol=1e-3)
    # An example that every member has seen says nothing, even if it has no target.
    held_out = parts.held_out.at[:, 40:].set(False)
    y = {**y, "field": y["field"].at[50].set(jnp.nan)}
    again = calibrate(ensemble, x, y, held_out)
    assert int(again.examples) == 40
    with pytest.raises(SelectionError, match=r"no member has seen.* on 0"):
        interval(again, x[0], conformal=True)
    of_one = calibrate(ensemble, x, y, jnp.zeros_like(held_out).at[1].set(held_out[1]))
    assert 0.5 < of_one.scales[0].coverage <= 1
    first = fit_scales(jnp.var(outputs, axis=0)[:40], residual[:40], jnp.ones(40))
    np.testing.assert_allclose(again.scales[0].spread, first[0], rtol=1e-3)


@pytest.mark.slow
def test_each_fold_is_scored_by_scales_of_the_other_folds(ensemble):
    x, y = draw(ensemble, 40, 3)
    parts = folds(40, 4, key=KEY)
    scales = calibrate(ensemble, x, y, parts).scales[1]
    outputs = ensemble.each(lambda model: jax.vmap(model)(x)["number"])
    fold, variance = jnp.argmax(parts.held_out, axis=0), jnp.var(outputs, axis=0)
    residual = y["number"] - outputs[fold, jnp.arange(40)]
    scores = []
    for number in range(4):
        inside = fold == number
        a, b = fit_scales(variance[~inside], residual[~inside])
        std = jnp.sqrt(a**2 * variance[inside] + b**2)
        scores += [*zip(jnp.abs(residual[inside]) <= 1.6449 * std, crps(residual[inside], std))]  # noqa: B905
    expected = np.mean(scores, axis=0)
    np.testing.assert_allclose((scales.coverage, scales.crps), expected, rtol=1e-3)


def test_new_inputs_set_the_size_of_the_scales():
    # Members that fit what they saw: the spread at an example is the error of one of them.
    residual = jax.random.normal(KEY, (400, 2))
    variance = residual**2 * 9 / 100
    assert fit_scales(variance, residual)[0] * 3 / 10 == pytest.approx(1 / 1.6449, rel=1e-2)
    new_variance = jnp.exp(jax.random.normal(KEY, (3000,)))
    a, b = fit_scales(variance, residual, None, new_variance)
    errors = jnp.sqrt(a**2 * new_variance + b**2) * jax.random.normal(jax.random.key(3), (3000,))
    quantiles = [float(jnp.quantile(jnp.abs(values), 0.9)) for values in (errors, residual)]
    assert quantiles[0] == pytest.approx(quantiles[1], rel=0.05)
    # Without a spread, they change nothing.
    zeros = jnp.zeros((400, 2))
    expected = fit_scales(zeros, residual)
    np.testing.assert_allclose(fit_scales(zeros, residual, None, zeros), expected, rtol=1e-5)


class Table(eqx.Module):
    """Answers from memory."""

    values: jax.Array

    def __call__(self, row):
        return self.values[row]


@pytest.mark.slow
@pytest.mark.parametrize("members", [5, 10])
def test_members_that_fit_what_they_saw_are_told(members):
    n, new = 60, jnp.arange(60, 360)
    noise = jax.random.normal(KEY, (members, 360))
    parts = folds(n, members, key=KEY)
    table = noise.at[:, :n].multiply(parts.held_out.astype(noise.dtype))  # all targets are zero
    ensemble = Ensemble(lambda key: Net(Table(jnp.zeros(360)), key=key), members, key=KEY)
    ensemble = ensemble.update(eqx.tree_at(jax.tree.leaves, ensemble.partition()[0], [table]))
    with pytest.warns(JnoLoraWarning, match=r"is 0 there and 1.* on held-out.*new_x=inp") as told:
        calibrated = calibrate(ensemble, jnp.arange(n), jnp.zeros(n), parts)
    np.testing.assert_allclose(
        calibrated.scales[0].spread, members / 2 / 1.6449 * 2 / (members - 1) ** 0.5, rtol=1e-3
    )
    assert told[0].filename == __file__
    calibrated = calibrate(ensemble, jnp.arange(n), jnp.zeros(n), parts, new_x=new)
    # The error of one member at new rows is that of the standard normal distribution.
    _, std = jax.vmap(lambda row: predict(calibrated, row))(new)
    assert 0.8 < jnp.sqrt(jnp.mean(std**2)) < 1.3
    assert 0.8 < calibrated.scales[0].coverage < 1


@pytest.mark.slow
def test_members_before_their_training_are_told():
    model = eqx.nn.MLP(2, 1, 8, 1, key=KEY)
    ensemble = Ensemble(lambda key: Net(model, key=key).freeze().lora(rank=1), 5, key=KEY)
    x, parts = jax.random.normal(KEY, (40, 2)), folds(40, 5, key=KEY)
    with pytest.warns(JnoLoraWarning, match=r"members agree in .*ensemble\.update"):
        calibrate(ensemble, x, jnp.ones((40, 1)), parts)


def test_predictions_are_compiled_mapped_scanned_and_differentiated(calibrated):
    x = jax.random.normal(KEY, (5, 2))
    eager = predict(calibrated, x[0])
    compiled = eqx.filter_jit(predict)(calibrated, x[0])
    mapped = jax.vmap(lambda x: predict(calibrated, x))(x)
    outputs = calibrated.ensemble.each(lambda model: model(x[0]))
    scales = calibrated.scales[1]
    spread = jnp.std(outputs["number"])
    expected = jnp.sqrt((scales.spread * spread) ** 2 + scales.constant**2)
    np.testing.assert_allclose(eager.std["number"], expected, rtol=1e-5)
    np.testing.assert_allclose(eager.mean["field"], outputs["field"].mean(axis=0), rtol=1e-5)
    for leaf, same, row in zip(*map(jax.tree.leaves, (eager, compiled, mapped)), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-5)
        np.testing.assert_allclose(leaf, row[0], rtol=1e-5)

    def step(state, _):
        prediction = predict(calibrated, state)
        return prediction.mean["field"][:2], prediction

    _, rolled = jax.lax.scan(step, x[0], None, length=3)
    np.testing.assert_allclose(rolled.std["field"][0], eager.std["field"], rtol=1e-5)
    assert rolled.std["field"].shape == (3, 3)
    slope = jax.grad(lambda x: predict(calibrated, x).std["number"])(x[0])
    assert jnp.all(jnp.isfinite(slope))


@pytest.mark.slow
def test_few_examples_and_misfits_are_told(ensemble):
    x, y = draw(ensemble, 6, 3)
    with pytest.warns(JnoLoraWarning, match="6 held-out examples. Below 8"):
        few = calibrate(ensemble, x, y, None)
    with pytest.raises(SelectionError, match=r"at least 9 examples.* on 6"):
        interval(few, x[0], conformal=True)
    with pytest.raises(SelectionError, match=r"such as 0\.9, but is 90"):
        interval(few, x[0], 90)
    with pytest.raises(SelectionError, match=r"1 of 6 examples have NaN.*number"):
        calibrate(ensemble, x, {**y, "number": y["number"].at[2].set(jnp.nan)}, None)
    with pytest.raises(SelectionError, match=r"`new_x` have NaN.*field"):
        calibrate(ensemble, x, y, None, new_x=x.at[0].set(jnp.nan))
    endless = eqx.filter_jit(lambda few, x: interval(few, x, conformal=True))(few, x[0])
    assert jnp.all(jnp.isinf(endless.upper["field"]))
    with pytest.raises(SelectionError, match=r"\(6,\) of the outputs.*has \(6, 1\)"):
        calibrate(ensemble, x, {**y, "number": y["number"][:, None]}, None)
    with pytest.raises(SelectionError, match=r"structure of the outputs, .*'field'.*target for"):
        calibrate(ensemble, x, y["field"], None)
    waves = Ensemble(
        lambda key: Net(eqx.nn.MLP(2, 3, 2, 1, key=KEY), key=key),
        2,
        key=KEY,
        call=lambda model, x: model(x).astype(complex),
    )
    with pytest.raises(SelectionError, match=r"complex numbers.*model\(x\)\.real"):
        calibrate(waves, x, y["field"], None)
    with pytest.raises(SelectionError, match=r"4 members and 6 examples.*\(3, 6\)"):
        calibrate(ensemble, x, y, folds(6, 3, key=KEY))
    with pytest.raises(SelectionError, match="Every member has seen every example that"):
        calibrate(ensemble, x, y, jnp.zeros((4, 6), bool))


class Tokens(eqx.Module):
    """The logits of equal tokens."""

    mlp: eqx.nn.MLP
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x):
        return jnp.broadcast_to(self.mlp(x), (*self.shape, 3))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_labels_of_tokens_give_the_temperature_of_their_examples(shape):
    x, parts = jax.random.normal(KEY, (40, 2)), folds(40, 4, key=KEY)
    ensembles = [random_ensemble(lambda mlp, s=s: Tokens(mlp, s), outputs=3) for s in ((), shape)]
    outputs = ensembles[0].each(lambda model: jax.vmap(model)(x))
    labels = (jnp.argmax(outputs.mean(0), axis=-1) + jnp.arange(40) % 4 // 3) % 3
    of_tokens = jnp.broadcast_to(jnp.expand_dims(labels, (1, 2)[: len(shape)]), (40, *shape))
    once, many = (
        calibrate_classes(ensemble, x, of, parts).temperature
        for ensemble, of in zip(ensembles, (labels, of_tokens), strict=True)
    )
    np.testing.assert_allclose(once, many, rtol=5e-3)


def test_the_temperature_of_classes_makes_probabilities_honest():
    ensemble = random_ensemble(lambda mlp: mlp, outputs=3)
    x = jax.random.normal(KEY, (600, 2))
    outputs = 3 * ensemble.each(lambda model: jax.vmap(model)(x))
    mean = jnp.mean(jax.nn.softmax(outputs), axis=0)
    labels = jax.random.categorical(jax.random.key(7), jnp.log(mean))
    calibrated = calibrate_classes(ensemble, x, labels, None)
    np.testing.assert_allclose(calibrated.temperature, 1 / 3, rtol=0.25)
    found = jax.jit(jax.vmap(lambda x: probabilities(calibrated, x)))(x)
    scaled = jax.nn.softmax(outputs / 3 / calibrated.temperature)
    np.testing.assert_allclose(found, scaled.mean(axis=0), rtol=1e-4, atol=1e-6)
    # The likelihood of labels that each member left out, on a grid of temperatures.
    parts = folds(600, 4, key=KEY)
    member = jnp.argmax(parts.held_out, axis=0)
    logits = outputs[member, jnp.arange(600)] / 3

    def nll(temperature):
        return -jnp.sum(jax.nn.log_softmax(logits / temperature)[jnp.arange(600), labels])

    grid = jax.lax.map(nll, jnp.geomspace(0.05, 20, 400))
    assert nll(calibrate_classes(ensemble, x, labels, parts).temperature) <= grid.min() + 1e-2
    with pytest.raises(SelectionError, match="from 0 to 2, but lie from 1 to 3"):
        calibrate_classes(ensemble, x, labels % 3 + 1, None)
    with pytest.raises(SelectionError, match="outputs have NaN"):
        calibrate_classes(ensemble, x.at[0].set(jnp.nan), labels, None)
    of_first = jnp.zeros((4, 600), bool).at[0].set(True)
    with pytest.warns(JnoLoraWarning, match="at an end of the range"):
        calibrate_classes(ensemble, x, jnp.argmax(outputs[0], axis=-1), of_first)
    with pytest.raises(SelectionError, match=r"whole numbers of the shape \(600,\)"):
        calibrate_classes(ensemble, x, labels[:, None], None)

"""The study of sequences: its splits, EWC's penalty, and a short form of the whole."""

import json
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies import _families
from studies._families import FNO, FULL
from studies.sequence import _problem, _report
from studies.sequence._fitting import Fitting, Given, Held, distance, fisher
from studies.sequence._merging import MERGES
from studies.sequence._problem import FNO_1D, MLP
from studies.sequence._runs import KEY, Plan, run
from studies.sequence._ways import WAYS, Learner

from .conftest import killed, once

EFFORT = replace(FULL, pool=8, test=4, steps=20, every=10, pretraining_fields=8)
EFFORT = replace(EFFORT, pretraining_steps=4, seeds=1)


def toy(key):
    return eqx.nn.MLP(65, 64, 4, 1, jnp.tanh, key=key)


@pytest.fixture(scope="module")
def learner():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        data = _problem.data(MLP, 0, EFFORT)
        yield Learner(toy(jax.random.key(0)), data, Fitting(EFFORT, MLP), 0)


def marked(learner):
    """Data whose fields say which setting and sample they are."""
    pool = learner.data.pool[0]
    numbers = 100.0 * jnp.arange(len(pool))[:, None] + jnp.arange(pool.shape[1])
    fields = jnp.broadcast_to(numbers[..., None], pool.shape)
    return learner.data._replace(pool=(fields, fields))


@pytest.mark.parametrize("replay", [False, True])
def test_batches_hold_training_samples_of_the_task_and_replayed_settings(learner, replay):
    fitting, data = learner.fitting, marked(learner)
    given = Given(2, 0.1, replay=replay)
    drawn = jnp.stack([fitting.batch(data, learner.key, given, step)[0] for step in range(20)])
    settings, samples = jnp.divmod(drawn[..., 0], 100)
    assert set(samples.ravel().tolist()) == set(range(2, 8))  # two are for validation
    expected = {0, 1} if replay else {2}
    half = EFFORT.batch // 2
    assert set(settings[:, :half].ravel().tolist()) == expected
    assert set(settings[:, half:].ravel().tolist()) == {2}
    validated = fitting.validation(data, 1)
    assert set(validated[0][:, 0].tolist()) == {100.0, 101.0}
    assert set(validated[2].tolist()) == {float(data.z[1])}


def test_the_fisher_information_is_the_mean_square_of_the_relative_change(learner):
    """Of the last layer's bias, which moves each output by one."""
    model, fitting, data = learner.model, learner.fitting, learner.data
    found = fisher(fitting, model, data, 1, jax.random.key(0))
    fields, solutions = (u[1, 2:] for u in data.pool)

    def outputs(bias):
        changed = eqx.tree_at(lambda m: m.layers[1].bias, model, bias)
        predicted = MLP.predict(changed, fields, jnp.full(len(fields), data.z[1]))
        return predicted / jnp.linalg.norm(solutions, axis=1, keepdims=True)

    exact = jnp.sum(jax.jacobian(outputs)(model.layers[1].bias) ** 2) / len(fields)
    # Each square of the 64 numbers has one degree of freedom: 24 draws of 64 squares.
    assert jnp.sum(found.layers[1].bias) == pytest.approx(float(exact), rel=0.2)


def test_ewc_sums_the_quadratics_of_all_settings(learner):
    model = learner.model
    moved_model = jax.tree.map(lambda x: x + 0.1 if eqx.is_array(x) else x, model)
    moved = eqx.filter(moved_model, eqx.is_inexact_array)
    first = learner._held(None, model, 0)
    both = learner._held(first, moved_model, 1)
    second = Held(jax.tree.map(jnp.subtract, both.fisher, first.fisher), moved)

    def gradient(held):
        return jax.grad(lambda x: distance(held, x))(jax.tree.map(lambda x: 2 * x, moved))

    expected = jax.tree.map(jnp.add, gradient(first), gradient(second))
    for found, sums in zip(jax.tree.leaves(gradient(both)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, sums, rtol=1e-3, atol=1e-5)


def test_an_fno_is_told_the_setting_by_an_input_whose_weights_start_as_zero(monkeypatch):
    base = FNO.make(jax.random.key(0))
    monkeypatch.setattr(_problem, "pretrained", lambda *_: base)
    model, fields = FNO_1D.model(EFFORT), jax.random.normal(jax.random.key(1), (2, 64))
    predicted = FNO_1D.predict(model, fields, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(predicted, FNO.apply(base, fields), atol=1e-6)


def test_the_study_runs_goes_on_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    operator = replace(MLP, model=lambda _: toy(jax.random.key(0)))
    ways = [way for way in WAYS if way.name in ("full", "LoRA per task", "full, EWC")]
    merges = [merge for merge in MERGES if merge.method in ("linear", None)]
    plan = Plan([operator], ways, merges, EFFORT, 0)
    file = tmp_path / "results.jsonl"
    run(file, plan, "/full/0")
    lines = file.read_text().splitlines()
    assert len(lines) == 3
    # The first records were of one operator, and did not name it.
    lines = [lines[0].replace('"operator": "mlp-speed", ', ""), *lines[1:]]
    lines = killed(file, lines)
    run(file, plan)
    records = once(file, KEY)
    assert {json.dumps(record) for record in records} >= {*lines}
    learned = [record for record in records if record["way"] in {way.name for way in ways}]
    assert {record["way"] for record in learned} == {way.name for way in ways}
    for record in learned:
        assert np.shape(record["errors"]) == (5, 5) and len(record["steps"]) == 4
    each = next(record for record in learned if record["way"] == "LoRA per task")
    errors = np.array(each["errors"])
    assert all(np.all(errors[stage:, stage] == errors[stage, stage]) for stage in range(5))

    for name in ("sequence-study", "combining"):
        (tmp_path / f"{name}.md").write_text((_report.DOCS / f"{name}.md").read_text())
    page = _report.write_page(file, tmp_path, plan).read_text()
    assert all(f"| {way.name} |" in page for way in ways)
    table = (tmp_path / "combining.md").read_text()
    assert all(f"| {merge.row} |" in table for merge in merges)

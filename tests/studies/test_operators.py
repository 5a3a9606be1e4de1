"""The study of operators: its splits, its early stopping, and a short form of the whole."""

import functools
import json
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies import _families
from studies._families import FNO, FULL, Family, relative_errors
from studies._records import read
from studies.equivariant._force_field import ForceField
from studies.operators import _report
from studies.operators._fitting import Fitting
from studies.operators._methods import KEEPING, METHODS
from studies.operators._problems import PROBLEMS, Problem
from studies.operators._results import load
from studies.operators._runs import KEY, PLAN, Plan, run
from studies.physics._darcy import new_operator
from studies.physics._ways import new_network
from studies.sequence._problem import MLP_FAMILY

from .conftest import killed

TRACED = []


def initial(key, number):
    return jax.random.normal(key, (number, 16))


def predict(model, fields):
    TRACED.append(fields.shape)
    return jax.vmap(model)(fields)


LINEAR = Family(
    "linear",
    lambda key: eqx.nn.Linear(16, 16, key=key),
    predict,
    initial,
    lambda fields, by, steps: by * jnp.roll(fields, 1, axis=1),
    {"by": 1.0},
    head="weight",
    time_steps=1,
    points=16,
)
PROBLEM = Problem("linear", "Linear", LINEAR, {"by": 2.0}, (1,), "")
EFFORT = replace(FULL, pool=16, test=16, steps=40, every=10, patience=2)


@pytest.fixture(scope="module")
def fitted():
    """The outcomes of runs on a linear model, and its error as it was."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = LINEAR.make(jax.random.key(0))
        pool, test = (_families.simulate(LINEAR, seed, 16, PROBLEM.target) for seed in (1, 2))
        source = _families.simulate(LINEAR, 2, 16, LINEAR.source)
        fitting = Fitting(PROBLEM, EFFORT)
        parts = eqx.partition(model, eqx.is_array)

        def run(samples, rate):
            arguments = (jax.random.key(0), jnp.asarray(samples), jnp.asarray(rate))
            return fitting.run(*parts, pool, (test, source), None, *arguments)

        untouched, at_source = (
            jnp.mean(relative_errors(LINEAR.apply(model, u[0]), u[1])) for u in (test, source)
        )
        outcomes = {name: run(16, rate) for name, rate in RATES.items()}
        yield outcomes, untouched, run, at_source


RATES = {"good": 0.1, "none": 0.0, "absurd": 1e6}


def test_the_models_of_the_studies_have_real_arrays():
    """As their pages say: gradients by complex arrays would have to be conjugated."""
    families = (FNO, _families.UNET, _families.POSEIDON, MLP_FAMILY)
    makes = [*(family.make for family in families), new_operator, functools.partial(new_network, 2)]
    irreps = ["4x0e", "4x0e+2x1e", "4x0e"]
    makes.append(lambda key: ForceField(irreps, 2, widths=(4, 8), key=key))
    for make in makes:
        arrays = jax.tree.leaves(eqx.filter(make(jax.random.key(0)), eqx.is_array))
        assert arrays and not any(map(jnp.iscomplexobj, arrays))


@pytest.mark.parametrize("samples", [2, 16])
def test_training_and_validation_share_no_sample(samples):
    fitting = Fitting(replace(PROBLEM, axes=()), EFFORT)
    pool = (jnp.arange(16.0)[:, None] + 0 * jnp.ones((16, 16)),) * 2
    key = jax.random.key(3)
    trained = {
        float(value)
        for step in range(30)
        for value in fitting.batch(pool, key, samples, step)[0][:, 0]
    }
    validated = {float(value) for value in fitting.validation(pool, key, samples)[0][:, 0]}
    assert not trained & validated
    assert len(validated) == max(1, samples // 4)
    assert len(trained) == samples - len(validated)


def test_training_helps_and_step_0_is_a_candidate_that_ends_what_does_not_help(fitted):
    outcomes, untouched, run, at_source = fitted
    good = outcomes["good"]
    assert good.test < 0.8 * untouched
    assert good.best_step > 0 and good.steps == EFFORT.steps
    for outcome in (outcomes["none"], outcomes["absurd"]):
        np.testing.assert_allclose(outcome.test, untouched, rtol=1e-6)
        np.testing.assert_allclose(outcome.source, at_source, rtol=1e-6)
        assert (outcome.best_step, outcome.steps) == (0, EFFORT.every * EFFORT.patience)
    # Samples and rates compile nothing again.
    before = len(TRACED)
    run(2, 0.01)
    assert len(TRACED) == before > 0


def test_the_study_runs_goes_on_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    effort = replace(EFFORT, pretraining_fields=8, pretraining_steps=4, pool=128, steps=20)
    effort = replace(effort, samples=(2, 128), seeds=2)
    methods = [method for method in METHODS if method.name in ("full", "lora")]
    plan = Plan((PROBLEM,), methods, effort, KEEPING[:1])
    file = tmp_path / "results.jsonl"
    run(file, plan, "linear/full/")
    lines = file.read_text().splitlines()
    assert len(lines) == 2 + 2 * 2 * 5  # source and untouched; samples, seeds, rates
    earlier = [{k: v for k, v in json.loads(line).items() if k != "source"} for line in lines]
    lines = [*map(json.dumps, earlier)]  # records from before the error at the source was there
    lines = killed(file, lines)
    run(file, plan)
    records = read(file)
    settings = [tuple(record[name] for name in KEY) for record in records]
    assert len(set(settings)) == 2 + 2 * 2 * 2 * 5 + 2 * 5
    assert len(settings) - len(set(settings)) == 2  # the best run of each seed, repeated
    assert {json.dumps(record) for record in records} >= {*lines}

    (tmp_path / "operators.md").write_text((_report.DOCS / "operators.md").read_text())
    page = _report.write_page(file, tmp_path, plan).read_text()
    study = load(file, plan)
    assert f"| `full` | 100 % | {study.cell(PROBLEM, 'full', 2)} |" in page
    kept = study.kept(PROBLEM, "full")
    assert f"| `full` | 2 | {kept.test:.3f}, {kept.source:.3f} |" in page
    assert kept.deviation < 1e-3 and kept.source != kept.test
    assert "| `full, retain` | 2 |" in page and "No error at the source" not in page
    assert "### Linear" in page and "**No method met it.**" in " ".join(page.split())
    for name in ("operators", "operators-methods"):
        assert "<svg" in (tmp_path / "images" / f"{name}.svg").read_text()


def test_the_rate_is_chosen_by_validation_alone(tmp_path):
    def record(rate, validation, test, best_step):
        named = dict(zip(KEY, ("allen-cahn", "full", 2, 0, rate), strict=True))
        outcome = {"validation": validation, "test": test, "best_step": best_step, "steps": 4}
        return named | outcome | {"seconds": 1.0, "trained": 1, "total": 10}

    records = [record(0.1, 0.5, 0.1, 2), record(1.0, 0.4, 0.9, 2), record(3.0, 0.6, 0.2, 2)]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    problem = next(problem for problem in PROBLEMS if problem.name == "allen-cahn")
    study = load(file, replace(PLAN, effort=replace(FULL, seeds=1, rates=(0.1, 1.0, 3.0))))
    cell = study.cell(problem, "full", 2)
    assert cell.errors == (0.9,) and cell.edges == (0, 0)
    assert study.share(problem, "full") == 0.1
    unfinished = load(file, replace(PLAN, effort=replace(FULL, seeds=1, samples=(2,))))
    assert unfinished.cell(problem, "full", 2) is None and unfinished.kept(problem, "full") is None

"""The study again: estimates of a value from one simulation, the large models, the page."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from studies import _families
from studies.conditional import again
from studies.conditional._fitting import Fitting
from studies.conditional._methods import AGAIN_HEADLINE, FILM, FILM_BY_NUMBER, METHODS
from studies.conditional._results import Cell, Study, load
from studies.conditional._runs import FITS, KEY, Plan, Runs, run
from studies.conditional._tasks import TASKS
from studies.conditional._value_fits import DRAWS, FORMS, Form, ValueFits, forms_of
from studies.large._plans import AGAIN, TASKS as LARGE

from .conftest import killed, once
from .test_conditional import EFFORT, TASK

VISCOSITY, FORCE = TASKS[0], TASKS[1]
BY_NAME = {method.name: method for method in METHODS}
LINEAR = replace(TASK, log=True)


class Exact:
    """A model that solves the linear task at every value, after adding a constant to each field."""

    def __init__(self, constant=0.0):
        self.constant = constant

    def at(self, z):
        return lambda field: z * field + self.constant


def ready():
    fields = jax.random.normal(jax.random.key(0), (16, 8))
    values = jnp.asarray([1.2, 1.4, 1.6, 1.8] * 4)
    tests = (jnp.stack([fields[:2]] * 8), jnp.stack([z * fields[:2] for z in LINEAR.values]))
    return SimpleNamespace(
        task=LINEAR,
        tests=tests,
        fitting=Fitting(LINEAR, EFFORT),
        pool=lambda seed, more: (fields, values[:, None] * fields, values),
        target=lambda value, seed: (fields, value * fields, jnp.full(16, value)),
    )


@pytest.mark.parametrize("form", [Form("z", 1, False), Form("log", 3, False)])
def test_each_simulation_gives_the_value_of_an_exact_model(form):
    z, errors = ValueFits(ready(), Exact(), 8, 0)(1.5, form)
    np.testing.assert_allclose(z, np.full(DRAWS, 1.5), rtol=1e-4)
    assert errors.shape == (DRAWS,) and jnp.all(errors < 1e-3)


def test_weights_lower_the_influence_of_a_mode_in_which_the_model_is_wrong():
    errors = {
        weighted: ValueFits(ready(), Exact(0.3), 8, 0)(1.5, Form("log", 1, weighted))[0] - 1.5
        for weighted in (False, True)
    }
    assert jnp.sqrt(jnp.mean(errors[True] ** 2)) < 0.2 * jnp.sqrt(jnp.mean(errors[False] ** 2))


def test_forms_that_are_the_same_run_once():
    assert len(forms_of(BY_NAME[AGAIN_HEADLINE], VISCOSITY)) == len(FORMS) == 4
    assert len(forms_of(FILM, VISCOSITY)) == len(forms_of(FILM, FORCE)) == 3
    names = {f.named(name) for name in (AGAIN_HEADLINE, FILM.name) for f in forms_of(FILM, FORCE)}
    assert len(names) == 6


def test_the_fits_go_on_and_the_page_has_what_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(Runs, "_trained", lambda *_: Exact())
    task = replace(TASK, inside=(1.3,))
    plan = Plan((task,), (BY_NAME[AGAIN_HEADLINE], FILM), (), EFFORT, left_out=())
    file = tmp_path / "results.jsonl"
    run(file, plan, FITS)
    lines = killed(file)
    run(file, plan, FITS)
    records = [r for r in once(file, KEY) if r["method"] != "none"]
    assert len(records) == 2 * 3 * 2 and {json.dumps(r) for r in records} >= {*lines[1:]}

    study = load(file, plan)
    found = list(again.fit_cells(study))
    assert [(c.end, c.form) for c in found[:2]] == [("inside", FORMS[0]), ("outside", FORMS[0])]
    assert len(found) == 6 and all(cell.adapter.value < 1e-3 for cell in found)
    (tmp_path / "conditional-study.md").write_text(
        (again.DOCS / "conditional-study.md").read_text()
    )
    page = again.write_page(file, tmp_path, plan, tmp_path / "none", AGAIN).read_text()
    page = page.replace("\n", " ")
    assert "| Linear | outside | log, 3 starts |" in page
    assert "* **Open.** Inside the range" in page and "FNO in 2-D 0, 0; Transformer 0, 0." in page


def fits(adapter, film, by_number):
    """Made-up fits of all values of the viscosity, by relative errors of the value."""
    values, seeds = {}, {AGAIN_HEADLINE: (0, 1, 2), FILM.name: (0, 1), FILM_BY_NUMBER.name: (1, 2)}
    errors = {AGAIN_HEADLINE: adapter, FILM.name: film, FILM_BY_NUMBER.name: by_number}
    for name, error in errors.items():
        for form in forms_of(BY_NAME[name], VISCOSITY):
            for value in (*VISCOSITY.inside, *VISCOSITY.outside):
                record = {"value": value, "z": [value * (1 + error)] * 2, "errors": [error] * 2}
                by_seed = dict.fromkeys(seeds[name], record)
                values[VISCOSITY.name, form.named(name), value] = by_seed
    return Study(replace(again.PLAN, tasks=(VISCOSITY,)), {}, {}, {}, values)


@pytest.mark.parametrize(
    ("given", "status", "wins"), [((0.1, 0.2, 0.3), "Met", 2), ((0.25, 0.2, 0.3), "Not met", 0)]
)
def test_estimates_count_against_the_better_film(given, status, wins):
    study = fits(*given)
    verdict = again.verdict_of_fits(study)
    assert verdict.startswith(f"* **{status}.**") and f"nearer in {wins} of 2 cells" in verdict
    cell = next(again.fit_cells(study))
    assert cell.seeds == 1
    rms = np.sqrt(np.mean(np.square(VISCOSITY.inside)))
    np.testing.assert_allclose(cell.film, (0.2 * rms, np.log(1.2), 0.2))
    np.testing.assert_allclose(cell.adapter, (given[0] * rms, np.log(1 + given[0]), given[0]))


def test_cells_count_the_seeds_that_both_sides_have_and_join_small_and_large():
    def cell(error, seeds, task):
        return Cell(
            {seed: (error * (1 + seed),) * len(task.values) for seed in seeds}, 1.0, 0.01, 0
        )

    studies = []
    for plan, task, samples in ((again.PLAN, VISCOSITY, 8), (AGAIN, LARGE[0], 16)):
        cells = {
            (task.name, AGAIN_HEADLINE, samples, 0.0): cell(0.9, (0, 1), task),
            (task.name, FILM.name, samples, 0.0): cell(1.0, (0,), task),
            (task.name, FILM_BY_NUMBER.name, samples, 0.0): cell(1.2, (0, 1), task),
        }
        untouched = {task.name: [(0.9,) * len(task.values), (1.8,) * len(task.values)]}
        studies.append(Study(replace(plan, tasks=(task,)), cells, untouched, {}))
    found = [cell for study in studies for cell in again.cells(study)]
    assert len(found) == 5 + 3
    assert all(cell.ratio == pytest.approx(0.9) for cell in found)
    assert "Inside the range, 4 of 4" in again.verdicts(*studies)
    text = again.progress(*studies).replace("\n", " ")
    assert "of 3, with 8, 16, 32 simulations: Burgers, viscosity 1, 0, 0." in text
    assert "of 2, with 16, 64 simulations: FNO in 2-D 1, 0." in text
    assert f"| `{FILM.name}` | 1.0 % | 4 | 1.00 | 4 | 1.00 |" in again.methods(*studies)


def test_the_large_plan_repeats_what_the_goal_compares():
    jobs = AGAIN.jobs()
    repeated = {(job.method, job.samples) for job in jobs if list(job.seeds) == [1]}
    names = (AGAIN_HEADLINE, FILM.name, FILM_BY_NUMBER.name)
    assert repeated == {(name, samples) for name in names for samples in (16, 64)} | {(FITS, 64)}
    once_only = {job.method for job in jobs} - {method for method, _ in repeated}
    assert len(once_only) == 4 and all(BY_NAME[name] for name in once_only)

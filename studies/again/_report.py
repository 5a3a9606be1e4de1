"""The goal of the study again, by cell, and its part of `docs/evidence/conditional-study.md`."""

import math
import pathlib
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .._pages import DOCS, fill, filled, percent
from .._records import Record
from ..conditional._methods import (
    AGAIN,
    AGAIN_HEADLINE,
    FILM,
    FILM_BY_NUMBER,
    FULL,
    HEADLINE,
    MAIN,
    Method,
)
from ..conditional._results import Mean, Study, load
from ..conditional._runs import EFFORT, FIT, RESULTS, SETS, TARGET, Plan
from ..conditional._tasks import Task
from ..conditional._value_fits import FITTED, FORMS, GOAL_FORM, form_of
from ..large._plans import AGAIN as LARGE, AGAIN_RESULTS as LARGE_RESULTS

AGAIN_RESULTS = RESULTS.with_name("conditional-again.jsonl")
SMALL, EQUAL = 0.05, 1.03
FILMS = (FILM, FILM_BY_NUMBER)
# The baselines of the first study that take part; their runs are in its file.
BASELINES = tuple(
    m for m in MAIN if m.name in (FILM.name, FULL, "full + channel", "film", HEADLINE)
)
PLAN = Plan(
    main=(*AGAIN, *BASELINES),
    second=(),
    effort=EFFORT,
    left_out=(TARGET, SETS, FIT),
    repeats_all=True,
    files=(RESULTS,),
)


class Cell(NamedTuple):
    """One unseen value of a task, with one number of simulations, over the seeds that both have."""

    task: Task
    samples: int
    value: float
    adapter: Mean
    film: Mean  # the better FiLM's

    @property
    def ratio(self) -> float:
        """The adapter's error over the better FiLM's."""
        return self.adapter.mean / self.film.mean

    @property
    def is_outside(self) -> bool:
        """Whether the value lies outside of the range of the training values."""
        return self.value in self.task.outside

    @property
    def is_met(self) -> bool:
        """Whether the cell meets the goal."""
        return self.ratio < 1 if self.is_outside else self.ratio <= EQUAL


def cells(study: Study, method: str = AGAIN_HEADLINE) -> list[Cell]:
    """The cells that have results of the method and of every FiLM that differs on the task."""
    found: list[Cell] = []
    for task in study.plan.tasks:
        for samples in sorted(study.plan.effort.samples):
            names = (method, *(film.name for film in FILMS if film.on(task)))
            results = [study.cell(task, name, samples) for name in names]
            done = [cell for cell in results if cell is not None]
            seeds = set.intersection(*(set(cell.errors) for cell in done)) if done else set()
            if len(done) < len(names) or not seeds:
                continue
            for value in (*task.inside, *task.outside):
                place = task.values.index(value)
                adapter, *films = (cell.only(seeds).at(place) for cell in done)
                better = min(films, key=lambda film: film.mean)
                found.append(Cell(task, samples, value, adapter, better))
    return found


class Estimates(NamedTuple):
    """Estimates of values from one simulation, in one form, by one model or by the better of two.

    - `value`, `log`: the root of the mean square error of the value, and of its logarithm.
    - `error`: the mean error of the predictions at the estimates.
    """

    value: float
    log: float
    error: float


class FitCell(NamedTuple):
    """The estimates at all values of a task inside, or outside, of the range, in one form."""

    task: Task
    end: str
    form: str
    seeds: int
    adapter: Estimates
    film: Estimates  # each number is the better FiLM's

    @property
    def is_better(self) -> bool:
        """Whether the adapter's estimates are nearer: by the logarithm, if the task has one."""
        return self.adapter[self.task.log] < self.film[self.task.log]


def fit_cells(study: Study) -> Iterator[FitCell]:
    """The cells in which both sides have estimates of every value, in each form that differs."""
    methods = [method for name in FITTED for method in AGAIN + MAIN if method.name == name]
    for task in study.plan.tasks:
        here = [method for method in methods if method.on(task)]
        forms = {tuple(form_of(form, m, task) for m in here): form for form in reversed(FORMS)}
        for form in sorted(forms.values(), key=FORMS.index):
            for end, values in (("inside", task.inside), ("outside", task.outside)):
                by_method = [_records(study, task, form, method, values) for method in here]
                seeds = set.intersection(*(set(records) for records in by_method))
                if not seeds:
                    continue
                adapter, *films = (
                    _estimates([r for seed in seeds for r in records[seed]])
                    for records in by_method
                )
                better = Estimates(*map(min, zip(*films, strict=True)))
                yield FitCell(task, end, form, len(seeds), adapter, better)


def _records(
    study: Study, task: Task, form: str, method: Method, values: tuple[float, ...]
) -> dict[int, list[Record]]:
    """By seed, the fits at all of these values."""
    name = form_of(form, method, task).named(method.name)
    by_value = [study.values.get((task.name, name, value), {}) for value in values]
    seeds = set.intersection(*map(set, by_value))
    return {seed: [records[seed] for records in by_value] for seed in seeds}


def _estimates(records: list[Record]) -> Estimates:
    z = np.asarray([record["z"] for record in records])
    value = np.asarray([[record["value"]] for record in records])
    # A value at or below zero counts as a hundredth of the true value.
    log = np.log(np.maximum(z / value, 0.01))
    error = statistics.fmean(e for record in records for e in record["errors"])
    return Estimates(math.sqrt(np.mean((z - value) ** 2)), math.sqrt(np.mean(log**2)), error)


def write_page(
    results: pathlib.Path = AGAIN_RESULTS,
    docs: pathlib.Path = DOCS,
    plan: Plan = PLAN,
    large_results: pathlib.Path = LARGE_RESULTS,
    large_plan: Plan = LARGE,
) -> pathlib.Path:
    """Fill the marked sections of `conditional-study.md`, and return the page's path."""
    studies = (load(results, plan), load(large_results, large_plan))
    page = docs / "conditional-study.md"
    sections = {
        "again": verdicts(*studies) + verdict_of_fits(*studies) + "\n" + progress(*studies),
        "again, cells": table(*studies),
        "again, methods": methods(*studies),
        "again, fits": table_of_fits(*studies),
    }
    fill(page, sections)
    return page


def verdicts(*studies: Study) -> str:
    """The clauses of the goal about errors."""
    found = [cell for study in studies for cell in cells(study)]
    goals = [study.goal(AGAIN_HEADLINE) for study in studies]
    share, source = max(goal.share for goal in goals), max(goal.source for goal in goals)
    inside = [cell.is_met for cell in found if not cell.is_outside]
    outside = [cell.is_met for cell in found if cell.is_outside]
    clauses = [
        (share <= SMALL, f"The adapter trains {percent(share)} of the parameters at most."),
        (source <= 1e-5, f"The error at the source changes by at most {source:.1g}."),
        (all(inside), f"Inside the range, {sum(inside)} of {len(inside)} cells meet the goal."),
        (all(outside), f"Outside of it, {sum(outside)} of {len(outside)} cells meet the goal."),
    ]
    return "".join(_clause(is_met if found else None, text) for is_met, text in clauses)


def verdict_of_fits(*studies: Study) -> str:
    """The clause of the goal about the estimate of an unknown value."""
    found = [c for study in studies for c in fit_cells(study) if c.form == GOAL_FORM]
    nearer = [cell.is_better for cell in found]
    better = sum(cell.adapter.error < cell.film.error for cell in found)
    return _clause(
        all(nearer) if found else None,
        f"From one simulation, the adapter's estimate of the value is nearer in {sum(nearer)} of "
        f"{len(found)} cells, and the prediction at the estimate is better in {better}.",
    )


def _clause(is_met: bool | None, text: str) -> str:
    status = "Open" if is_met is None else "Met" if is_met else "Not met"
    return f"* **{status}.** {text}\n"


def progress(*studies: Study) -> str:
    """How many seeds each task has."""
    sentences: list[str] = []
    for study in studies:
        found, numbers = cells(study), sorted(study.plan.effort.samples)
        parts: list[str] = []
        for task in study.plan.tasks:
            seeds = {c.samples: len(c.adapter.by_seed) for c in found if c.task is task}
            parts.append(f"{task.title} {', '.join(str(seeds.get(n, 0)) for n in numbers)}")
        sentences.append(
            f"Recorded seeds, of {study.plan.effort.seeds}, with {', '.join(map(str, numbers))} "
            f"simulations: {'; '.join(parts)}."
        )
    return filled(" ".join([*sentences, "A seed counts when the adapter and both FiLMs have it."]))


def table(*studies: Study) -> str:
    """A row for each cell: the adapter's error, the better FiLM's, their ratio."""
    rows: list[list[str]] = []
    for cell in (cell for study in studies for cell in cells(study)):
        value = f"*{cell.value:g}*" if cell.is_outside else f"{cell.value:g}"
        numbers = [str(cell.adapter), str(cell.film), f"{cell.ratio:.2f}"]
        met = "met" if cell.is_met else "not met"
        rows.append([cell.task.title, str(cell.samples), value, *numbers, met])
    header = ["task", "simulations", "value", "adapter with film", "better FiLM", "ratio", ""]
    return _table(header, rows)


def methods(*studies: Study) -> str:
    """A row for each method: its ratio to the better FiLM, over the cells that it has."""
    rows: list[list[str]] = []
    plans = (study.plan for study in studies)
    for name in dict.fromkeys(m.name for plan in plans for m in (*plan.main, *plan.second)):
        found = [cell for study in studies for cell in cells(study, name)]
        if not found:
            continue
        goals = [study.goal(name) for study in studies]
        columns = [f"`{name}`", percent(max(goal.share for goal in goals))]
        for is_outside in (False, True):
            ratios = [cell.ratio for cell in found if cell.is_outside is is_outside]
            columns += [str(len(ratios)), f"{statistics.geometric_mean(ratios):.2f}"]
        rows.append([*columns, f"{max(goal.source for goal in goals):.1g}"])
    header = ["method", "trained", "cells inside", "ratio", "cells outside", "ratio"]
    return _table([*header, "source changes by"], rows)


def table_of_fits(*studies: Study) -> str:
    """A row for each cell of fits: the adapter's numbers, and the better FiLM's."""
    rows: list[list[str]] = []
    for cell in (cell for study in studies for cell in fit_cells(study)):
        numbers = [
            text
            for estimates in (cell.adapter, cell.film)
            for text in (
                f"{estimates.value:.2g}",
                f"{estimates.log:.2f}" if cell.task.log else "",
                f"{estimates.error:.4f}",
            )
        ]
        rows.append([cell.task.title, cell.end, cell.form, *numbers, str(cell.seeds)])
    sides = [f"{side}: {of}" for side in ("adapter", "FiLM") for of in ("value", "log", "error")]
    return _table(["task", "values", "form", *sides, "seeds"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "No results yet.\n"
    head, *lines = (f"| {' | '.join(row)} |\n" for row in (header, *rows))
    return "".join([head, "|---" * len(header) + "|\n", *lines])

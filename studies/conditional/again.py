"""The study again, in the right coordinate of a viscosity: `python -m studies.conditional.again`.

The goal was set before any run: an adapter with scales and shifts (`Conditional(film=True)`) trains
at most 5 % of the parameters, leaves the source as it is, has at most the error of the better FiLM
(by the number or by its logarithm; 3 % count as equal) at every unseen value inside the range, and
a lower error at every value outside.
"""

import pathlib
from dataclasses import replace
from typing import NamedTuple

from .._command import command
from .._families import QUICK
from .._pages import DOCS, fill, percent
from ._methods import (
    AGAIN,
    AGAIN_HEADLINE,
    FILM,
    FILM_BY_NUMBER,
    FULL,
    HEADLINE,
    MAIN,
)
from ._results import Mean, Study, load
from ._runs import EFFORT, FIT, RESULTS, SETS, TARGET, Plan, run
from ._tasks import Task

AGAIN_RESULTS = RESULTS.with_name("conditional-again.jsonl")
SMALL, EQUAL = 0.05, 1.03
# The baselines of the first study that take part; their runs are in its file.
BASELINES = tuple(
    m for m in MAIN if m.name in (FILM.name, FULL, "full + channel", "film", HEADLINE)
)
PLAN = Plan(
    main=(*AGAIN, *BASELINES),
    second=(),
    left_out=(TARGET, SETS, FIT),
    repeats_all=True,
    files=(RESULTS,),
)


class Cell(NamedTuple):
    """One unseen value of a task, with one number of simulations."""

    task: Task
    samples: int
    value: float
    adapter: Mean
    film: Mean  # the better FiLM's
    ratio: float  # over the seeds that both have

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
        names = [m.name for m in (FILM, FILM_BY_NUMBER) if m.on(task)]
        for samples in sorted(study.plan.effort.samples):
            adapter = study.cell(task, method, samples)
            films = [study.cell(task, name, samples) for name in names]
            if adapter is None or None in films:
                continue
            for value in (*task.inside, *task.outside):
                index = task.values.index(value)
                mean = adapter.at(index)
                ratios = [mean.ratio(film.at(index)) for film in films if film is not None]
                if (worst := max((r for r in ratios if r is not None), default=None)) is None:
                    continue
                better = films[ratios.index(worst)]
                assert better is not None
                found.append(Cell(task, samples, value, mean, better.at(index), worst))
    return found


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS, plan: Plan = PLAN) -> pathlib.Path:
    """Fill the marked section of `conditional-study.md`, and return the page's path."""
    study = load(results, plan)
    page = docs / "conditional-study.md"
    fill(page, {"again": verdicts(study) + "\n" + table(study)})
    return page


def verdicts(study: Study) -> str:
    """The clauses of the goal."""
    found, goal = cells(study), study.goal(AGAIN_HEADLINE)
    inside = [cell.is_met for cell in found if not cell.is_outside]
    outside = [cell.is_met for cell in found if cell.is_outside]
    trained = percent(goal.share)
    clauses = [
        (goal.share <= SMALL, f"The adapter trains {trained} of the parameters at most."),
        (goal.source <= 1e-5, f"The error at the source changes by at most {goal.source:.1g}."),
        (all(inside), f"Inside the range, {sum(inside)} of {len(inside)} cells meet the goal."),
        (all(outside), f"Outside of it, {sum(outside)} of {len(outside)} cells meet the goal."),
    ]
    return "\n".join(f"* **{'Met' if met else 'Not met'}.** {text}" for met, text in clauses) + "\n"


def table(study: Study) -> str:
    """A row for each cell: the adapter's error, the better FiLM's, their ratio."""
    head = "| task | simulations | value | adapter with film | better FiLM | ratio | |"
    lines = [head, "|---" * 7 + "|"]
    for cell in cells(study):
        value = f"*{cell.value:g}*" if cell.is_outside else f"{cell.value:g}"
        columns = (cell.task.title, cell.samples, value, cell.adapter, cell.film)
        met = "met" if cell.is_met else "not met"
        lines.append(f"| {' | '.join(map(str, columns))} | {cell.ratio:.2f} | {met} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.conditional.again`."""
    quick = replace(QUICK, pool=16, samples=(8,), batch=8)
    command(
        "conditional.again",
        "task/method/samples",
        arguments,
        run=run,
        plans=(replace(PLAN, effort=EFFORT), replace(PLAN, effort=quick, files=())),
        results=AGAIN_RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()

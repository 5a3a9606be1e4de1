"""Write the tables of `docs/evidence/large-study.md` from the records of the runs."""

import pathlib
from dataclasses import replace

from .._pages import DOCS, fill, filled, percent
from ..conditional import _results as conditional
from ..conditional._methods import COMBINED, FILM, FULL, HEADLINE
from ..conditional._runs import Plan as ConditionalPlan
from ..conditional._tasks import Task
from ..operators._problems import Problem
from ..operators._report import errors_by_samples, forgetting, goal, summary, table
from ..operators._results import load
from ..operators._runs import Plan
from ._plans import CONDITIONAL, CONDITIONAL_RESULTS, PLAN

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "large.jsonl"


def write_page(
    results: pathlib.Path = RESULTS,
    docs: pathlib.Path = DOCS,
    plan: Plan = PLAN,
    conditional_results: pathlib.Path = CONDITIONAL_RESULTS,
    conditional_plan: ConditionalPlan = CONDITIONAL,
) -> pathlib.Path:
    """Fill the marked sections of `large-study.md`, and return the page's path."""
    page = docs / "large-study.md"
    problems = (_problem(results, _plan_of(plan, problem)) for problem in plan.problems)
    study = conditional.load(conditional_results, conditional_plan)
    tasks = [_task(study, task) for task in conditional_plan.tasks]
    fill(page, {"problems": "\n".join(problems), "conditional": "\n".join(filter(None, tasks))})
    return page


def _plan_of(plan: Plan, problem: Problem) -> Plan:
    """The plan of a problem alone, without methods that coincide on its model."""
    methods = [method for method in plan.methods if method.on(problem.family) is method]
    return replace(plan, problems=(problem,), methods=methods)


def _problem(results: pathlib.Path, plan: Plan) -> str:
    """The section of a problem: the errors, the goal, the ratios to full fine-tuning.

    All methods have the first seed. Methods with all seeds have a table of their means, too.
    """
    (problem,) = plan.problems
    study = load(results, replace(plan, effort=replace(plan.effort, seeds=1)))
    rows, most = study.rows(), max(plan.effort.samples)
    if len(rows) < 2:
        progress = "No adapter was run with every number of simulations yet.\n"
        return "\n".join((table(study, problem), progress))
    parts = [table(study, problem), goal(study, rows), summary(rows, most), forgetting(study)]
    repeated = load(results, plan)
    if plan.effort.seeds > 1 and len(rows := repeated.rows()) > 1:
        heading = f"The means over {plan.effort.seeds} seeds:\n"
        parts += [heading, errors_by_samples(repeated, problem), summary(rows, most)]
    return "\n".join(parts)


def _task(study: conditional.Study, task: Task) -> str:
    """The errors of a task by value: of one model for all values, and of full fine-tuning at one.

    Full fine-tuning at one value has all simulations at this value. A model for all values has as
    many simulations, spread over the values for training.
    """
    plan = study.plan
    values = (*task.inside, *task.outside, task.source)
    lines = [
        f"### {task.title}, every viscosity\n",
        f"| method | simulations | trained | {' | '.join(f'`{v:g}`' for v in values)} |",
        "|---" * (len(values) + 3) + "|",
    ]
    for errors in study.untouched.get(task.name, [])[:1]:
        cells = (f"{errors[task.values.index(value)]:.4f}" for value in values)
        lines.append(f"| *untouched* | | | {' | '.join(cells)} |")
    for samples in sorted(plan.effort.samples):
        for name in (HEADLINE, COMBINED, FILM.name, FULL):
            cell = study.cell(task, name, samples)
            if cell is not None:
                errors = [str(cell.at(task.values.index(value))) for value in values]
                columns = [f"`{name}`", str(samples), percent(cell.share), *errors]
                lines.append(f"| {' | '.join(columns)} |")
        for number in (samples // 4, samples):
            if number < samples and number in plan.effort.samples:
                continue  # has a row of its own
            targets = [study.target(task, number, value) for value in values]
            if any(targets):
                errors = ["" if error is None else str(error) for error in targets]
                columns = ["full at the value", f"{number} at the value", "100 %", *errors]
                lines.append(f"| {' | '.join(columns)} |")
    if len(lines) == 3:
        return ""
    goals = replace(study, plan=replace(plan, tasks=(task,))).goal(HEADLINE)
    lines.append("")
    if goals.targets[1]:
        lines.append(filled(_sentence(goals.targets, goals.source)))
    return "\n".join(lines)


def _sentence(targets: tuple[int, int], source: float) -> str:
    return (
        f"With as many simulations over all values, the conditional adapter is at least as good as "
        f"full fine-tuning at the value in {targets[0]} of {targets[1]} settings. The error at the "
        f"source changes by at most {source:.1g}."
    )

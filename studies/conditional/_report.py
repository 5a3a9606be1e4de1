"""Write the tables and the figure of `docs/evidence/conditional-study.md` from the records."""

import math
import pathlib
import statistics
from typing import NamedTuple

from .._pages import DOCS, fill, filled, percent
from .._records import read
from ._figures import draw
from ._methods import HEADLINE
from ._results import BASELINES, MOST, SMALL, Cell, Mean, Study, load
from ._runs import SETS, UNTOUCHED, Plan
from ._tasks import Task


def write_page(
    results: pathlib.Path, docs: pathlib.Path = DOCS, plan: Plan | None = None
) -> pathlib.Path:
    """Fill the marked sections of `conditional-study.md`, draw its figure, return its path."""
    plan = plan or Plan()
    study = load(results, plan)
    if not study.cells:
        raise SystemExit("There are no results. Run `python -m studies.conditional`.")
    page = docs / "conditional-study.md"
    sections = {
        "goal": _goal(study, results),
        "goals": _goals(study),
        "losses": _losses(study),
        "tasks": "\n".join(_task(study, task) for task in plan.tasks),
        "fits": _fits(study),
    }
    fill(page, sections)
    draw(study, docs / "images" / "conditional-study.svg")
    return page


def _names(study: Study) -> list[str]:
    plan = study.plan
    return [method.name for method in (*plan.main, *plan.second)]


def _goal(study: Study, results: pathlib.Path) -> str:
    goal, one = study.goal(HEADLINE), study.one_against_four()
    clauses = [
        (
            "Met" if goal.share <= SMALL else "Not met",
            f"The adapter trains {percent(goal.share)} of the parameters at most.",
        ),
        (
            _status(goal.baselines, MOST),
            f"The error is lower than every baseline's in {_of(goal.baselines)} cells.",
        ),
        (
            _status(goal.targets, 0.5),
            "The error is at most the error of full fine-tuning at the value in "
            f"{_of(goal.targets)} cells.",
        ),
        (
            "Met" if goal.source <= 1e-5 else "Not met",
            f"The error at the source changes by at most {goal.source:.1g}.",
        ),
        (
            _status(one, 1.0),
            "The parameter alone, fitted to one simulation, is at least as good as full "
            f"fine-tuning with four in {_of(one)} cells.",
        ),
    ]
    lines = [f"* **{status}.** {text}" for status, text in clauses]
    plan = study.plan
    pairs = [(t.name, m, n) for t in plan.tasks for m in BASELINES for n in plan.effort.samples]
    runs = sum(record["method"] != UNTOUCHED for record in read(results))
    seeds = [len(cell.errors) for key, cell in study.cells.items() if key[3] == 0]
    have = sum((*pair, 0.0) in study.cells for pair in pairs)
    first = plan.effort.samples[0]
    repeated = [study.cells.get((*pair, 0.0)) for pair in pairs if pair[2] == first]
    done = have == len(pairs) and all(
        cell is not None and len(cell.errors) == plan.effort.seeds for cell in repeated
    )
    progress = filled(
        f"{runs} runs are recorded. {have} of {len(pairs)} settings of the baselines have results, "
        f"from {statistics.fmean(seeds):.1f} of {plan.effort.seeds} seeds in the mean. Only the "
        "settings and seeds that both sides of a comparison have are counted."
    )
    return "\n".join([*lines, *([] if done else ["", progress])]) + "\n"


def _status(counts: tuple[int, int], fraction: float) -> str:
    wins, of = counts
    if not of:
        return "Open"
    return "Met" if wins >= fraction * of else "Not met"


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def _goals(study: Study) -> str:
    """The clauses of the goal for each conditional method, and ratios to the best baseline.

    Beside each ratio stands the ratio of the goal's adapter, over the same cells and seeds.
    """
    lines = [
        "| method | trained | lowest of all | at most full at the value | cells | error / best "
        "baseline's, inside | outside | source changes by |",
        "|---" * 8 + "|",
    ]
    for method in (*study.plan.main, *study.plan.second):
        goal = study.goal(method.name)
        if not method.is_conditional or not goal.share:
            continue
        ends = [_compared(study, method.name, end) for end in ("inside", "outside")]
        columns = [
            f"`{method.name}`",
            percent(goal.share),
            *(_of(counts) if counts[1] else "" for counts in (goal.baselines, goal.targets)),
            " + ".join(str(end.cells) for end in ends),
            *(f"{end.ratio:.2f} ({end.of_headline:.2f})" if end.cells else "" for end in ends),
            f"{goal.source:.0e}" if goal.source else "0",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


class Compared(NamedTuple):
    """Geometric means of the ratios to the best baseline of each task and number of samples."""

    cells: int  # values of the parameter, counted for each task and number of samples
    ratio: float
    of_headline: float  # of the goal's adapter, over the same cells and seeds


def _compared(study: Study, method: str, end: str) -> Compared:
    """The ratios where the method, the goal's adapter and all baselines have results."""
    count = 0
    logs: list[tuple[float, float]] = []
    for task in study.plan.tasks:
        for samples in study.plan.effort.samples:
            names = (method, HEADLINE, *BASELINES)
            cells = [cell for name in names if (cell := study.cell(task, name, samples))]
            seeds = set.intersection(*(set(cell.errors) for cell in cells)) if cells else set()
            if len(cells) < len(names) or not seeds:
                continue
            where = _indices(task, end)
            mean, of_headline, *means = (c.only(seeds).over(where).mean for c in cells)
            count += len(where)
            logs.append((math.log(mean / min(means)), math.log(of_headline / min(means))))
    if not logs:
        return Compared(0, 1.0, 1.0)
    ratios = (math.exp(statistics.fmean(side)) for side in zip(*logs, strict=True))
    return Compared(count, *ratios)


def _losses(study: Study) -> str:
    """Where a baseline, or full fine-tuning at the value, has a lower error than the adapter."""
    lines = ["| task | simulations | value | conditional | lower |", "|---" * 5 + "|"]
    for task, samples, value in study.settings():
        cell = study.cell(task, HEADLINE, samples)
        if cell is None:
            continue
        index = task.values.index(value)
        mean = cell.at(index)
        errors: dict[str, Mean | None] = {"full at the value": study.target(task, samples, value)}
        for name in BASELINES:
            baseline = study.cell(task, name, samples)
            errors[f"`{name}`"] = baseline and baseline.at(index)
        lower = [
            f"{name} {error.mean:.4f} (the adapter's is {ratio:.2f} times)"
            for name, error in errors.items()
            if error is not None and (ratio := mean.ratio(error) or 0) > 1
        ]
        if lower:
            columns = (task.title, str(samples), f"{value:g}", str(mean), ", ".join(lower))
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _task(study: Study, task: Task) -> str:
    """The errors of all methods on a task: by value at the first number of samples, and by N."""
    text = task.text
    training = ", ".join(f"{value:g}" for value in task.training)
    text += f" The simulations for training are at {training}."
    first = study.plan.effort.samples[0]
    lines = [f"### {task.title}\n", filled(text), f"{first} simulations:\n"]
    unseen = (task.source, *task.inside, *task.outside)
    header = ["method", "trained", *(f"{value:g}" for value in unseen), "seeds", "seconds"]
    header[2] = f"source, {header[2]}"
    for column in range(len(header) - 2 - len(task.outside), len(header) - 2):
        header[column] = f"*{header[column]}*"
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    if task.name in study.untouched:
        untouched = study.untouched[task.name][0]
        errors = [f"{untouched[task.values.index(value)]:.4f}" for value in unseen]
        lines.append(f"| untouched | 0 | {' | '.join(errors)} | | |")
    rows = [(name, study.cell(task, name, first)) for name in (*_names(study), SETS)]
    known = [(name, cell) for name, cell in rows if cell is not None]
    lowest = {
        value: min((cell.at(task.values.index(value)).mean for _, cell in known), default=0.0)
        for value in unseen
    }
    for name, cell in known:
        errors = [_error(cell.at(task.values.index(value)), lowest[value]) for value in unseen]
        lines.append(f"| `{name}` | {percent(cell.share)} | {' | '.join(errors)} | {_tail(cell)} |")
    for samples in (first, first // 4):
        targets = [study.target(task, samples, value) for value in unseen]
        if any(targets):
            errors = ["" if mean is None else str(mean) for mean in targets]
            name = f"full at the value, {samples}"
            lines.append(f"| {name} | 100 % | {' | '.join(errors)} | | |")
    return "\n".join(lines) + "\n\n" + _by_samples(study, task)


def _error(mean: Mean, lowest: float) -> str:
    return f"**{mean}**" if mean.mean <= lowest else str(mean)


def _tail(cell: Cell) -> str:
    return f"{len(cell.errors)} | {cell.seconds:.1f}"


def _by_samples(study: Study, task: Task) -> str:
    """The mean errors inside and outside of the range, by the number of simulations."""
    samples = sorted(study.plan.effort.samples)
    if sum(study.cell(task, HEADLINE, number) is not None for number in samples) < 2:
        return ""
    header = ["method", *(f"inside, {n}" for n in samples), *(f"outside, {n}" for n in samples)]
    lines = ["Means over the values inside and outside of the range, by number of simulations:\n"]
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in (*(method.name for method in study.plan.main), SETS):
        cells = [study.cell(task, name, number) for number in samples]
        errors = [
            "" if cell is None else f"{cell.over(_indices(task, end)).mean:.4f}"
            for end in ("inside", "outside")
            for cell in cells
        ]
        if any(errors):
            lines.append(f"| `{name}` | {' | '.join(errors)} |")
    targets = [[study.target(task, number, value) for value in task.inside] for number in samples]
    means = [
        f"{statistics.fmean(m.mean for m in each if m is not None):.4f}" if all(each) else ""
        for each in targets
    ]
    if any(means):
        blanks = " | ".join("" for _ in samples)
        lines.append(f"| full at the value | {' | '.join(means)} | {blanks} |")
    return "\n".join(lines) + "\n"


def _indices(task: Task, end: str) -> range:
    """Where the values inside, or outside, of the range are among the values of a task."""
    begin = 1 + len(task.training)
    if end == "inside":
        return range(begin, begin + len(task.inside))
    return range(begin + len(task.inside), len(task.values))


def _fits(study: Study) -> str:
    """The fitted parameter, by task, value and number of simulations."""
    header = ["task", "value", "simulations", "fitted: mean ± spread", "bias", "error"]
    header += ["full, as many", "full, 4", "seconds"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for task in study.plan.tasks:
        for value in (*task.inside, *task.outside):
            for used in (1, 2, 4):
                fits = study.fits.get((task.name, used, value))
                if fits is None:
                    continue
                mean = statistics.fmean(fits.z)
                # One simulation leaves none to stop by: full fine-tuning needs two.
                full = [study.target(task, number, value) for number in (used, 4)]
                columns = [
                    task.title,
                    f"{value:g}" if value in task.inside else f"*{value:g}*",
                    str(used),
                    f"{mean:.4g} ± {statistics.stdev(fits.z):.2g}",
                    f"{(mean - value) / abs(value - task.source):+.1%}",
                    str(fits.error),
                    *("" if mean is None else str(mean) for mean in full),
                    f"{fits.seconds:.2f}",
                ]
                lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"

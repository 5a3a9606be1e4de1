"""Write the tables and figures of `docs/evidence/operators.md` from the records of the runs."""

import pathlib
import statistics

from .._pages import DOCS, fill, filled, percent
from ._figures import draw_all, draw_few
from ._problems import Problem
from ._results import CLOSE, FEW, SMALL, Cell, Row, Study, geometric_mean, load
from ._runs import PLAN, Plan


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS, plan: Plan = PLAN) -> pathlib.Path:
    """Fill the marked sections of `operators.md`, draw its figures, and return the page's path."""
    study = load(results, plan)
    rows = study.rows()
    if not rows:
        raise SystemExit("No method was run in every setting. Run `python -m studies.operators`.")
    page = docs / "operators.md"
    sections = {
        "goal": goal(study, rows),
        "summary": summary(rows, max(plan.effort.samples)),
        "forgetting": forgetting(study),
        "problems": "\n".join(table(study, problem) for problem in plan.problems),
    }
    fill(page, sections)
    draw_few(study, rows, docs / "images" / "operators.svg")
    draw_all(rows, docs / "images" / "operators-methods.svg")
    return page


def goal(study: Study, rows: list[Row]) -> str:
    """The goal, and which methods met it."""
    pairs = len(study.plan.pairs())
    pairs_run = sum(study.is_complete(p, method) for p, method in study.plan.pairs())
    winners = [f"`{row.name}`" for row in rows if row.meets_the_goal]
    if pairs_run == pairs:
        nobody, progress = "No method", ""
    else:
        nobody = f"None of the methods measured so far ({len(rows) - 1})"
        progress = f" {pairs_run} of {pairs} pairs of problem and method were run."
    met = f"{', '.join(winners) or nobody} met it."
    several = len(study.plan.problems) > 1
    return filled(
        f"The goal was set in advance: at most {100 * SMALL:.0f} % of the parameters"
        f"{' of each model' if several else ''}; a "
        f"lower error than full fine-tuning in most settings with at most {FEW} simulations; "
        f"at most {100 * (CLOSE - 1):.0f} % more error than full fine-tuning at "
        f"{max(study.plan.effort.samples)}"
        f"{', in the geometric mean over the problems' if several else ''}. **{met}**{progress}"
    )


def summary(rows: list[Row], most: int) -> str:
    """The table of all methods, over all problems."""
    lines = [
        f"| method | trained | beats full, ≤ {FEW} | error / full's, ≤ {FEW} "
        f"| error / full's at {most} | worst at {most} | best rate lowest, highest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**`{row.name}`**" if row.meets_the_goal else f"`{row.name}`"
        shares = dict.fromkeys(map(percent, (min(row.shares), max(row.shares))))
        lines.append(
            f"| {name} | {' to '.join(shares)} | {row.wins} of {len(row.few)} "
            f"| {geometric_mean(row.few):.2f} | {geometric_mean(row.most):.2f} "
            f"| {max(row.most):.2f} | {row.edges[0]:.0%}, {row.edges[1]:.0%} |"
        )
    return "\n".join(lines) + "\n"


def forgetting(study: Study) -> str:
    """The errors before and after, and which methods have no record of them."""
    plan, problems = study.plan, study.plan.problems
    lines = [
        f"| method | seeds | {' | '.join(problem.title for problem in problems)} |",
        "|---" * (len(problems) + 2) + "|",
    ]
    before = ((study.plain.get((p.name, name)) for name in ("none", "source")) for p in problems)
    cells = (", ".join("?" if x is None else f"{x:.3f}" for x in pair) for pair in before)
    lines.append(f"| *untouched* | | {' | '.join(cells)} |")
    deviations, missing = [0.0], list[str]()
    for method in (*plan.methods, *plan.keeping):
        kept = [study.kept(problem, method.name) for problem in problems]
        known = [errors for errors in kept if errors is not None]
        if len(known) < len(problems):
            missing.append(f"`{method.name}`" + (f" ({len(known)})" if known else ""))
        if known:
            deviations += [errors.deviation for errors in known]
            seeds = ", ".join(map(str, sorted({errors.seeds for errors in known})))
            cells = ("" if k is None else f"{k.test:.3f}, {k.source:.3f}" for k in kept)
            lines.append(f"| `{method.name}` | {seeds} | {' | '.join(cells)} |")
    note = f"With {plan.kept} simulations. "
    if max(deviations) > 0:
        note += (
            "Runs from before this table were repeated at their rates. The repeated errors differ "
            f"by at most {max(deviations):.1%} from the tables below. "
        )
    if missing:
        note += f"The error at the source is not known in all problems for {', '.join(missing)}. "
    if any("(" in name for name in missing):
        note += "The numbers in brackets count the problems that have it. "
    if any("source" not in record for record in study.done.records.values() if record["samples"]):
        note += "Not all other runs have an error at the source."
    return "\n".join(lines) + "\n\n" + filled(note)


def table(study: Study, problem: Problem) -> str:
    """The section of a problem, with its table of errors by the number of samples."""
    text = problem.text
    source, none = (study.plain.get((problem.name, name)) for name in ("source", "none"))
    if source is not None and none is not None:
        text += (
            f" The pretrained model has an error of {source:.3f} in the source setting, and of "
            f"{none:.3f} in the shifted setting."
        )
    return "\n".join((f"### {problem.title}\n", filled(text), errors_by_samples(study, problem)))


def errors_by_samples(study: Study, problem: Problem) -> str:
    """The table of errors by the number of samples, for the methods that have some."""
    samples = study.plan.effort.samples
    lines = [
        f"| method | trained | {' | '.join(map(str, samples))} | seconds |",
        "|---" * (len(samples) + 3) + "|",
    ]
    for method in study.plan.methods:
        share = study.share(problem, method.name)
        cells = [study.cell(problem, method.name, n) for n in samples]
        if method.on(problem.family) is not method or share is None or not any(cells):
            continue
        full_cells = [study.cell(problem, "full", n) for n in samples]
        errors = [_error(cell, full) for cell, full in zip(cells, full_cells, strict=True)]
        seconds = statistics.fmean(cell.seconds for cell in cells if cell)
        columns = [f"`{method.name}`", percent(share), *errors, f"{seconds:.1f}"]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _error(cell: Cell | None, full: Cell | None) -> str:
    """The error of a cell, bold if it is lower than the error of full fine-tuning."""
    if cell is None:
        return ""
    return f"**{cell}**" if full is not None and cell.mean < full.mean else str(cell)

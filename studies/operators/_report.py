"""Write the tables and figures of `docs/operators.md` from the records of the runs."""

import pathlib
import re
import statistics
import textwrap

from ._figures import draw_all, draw_few
from ._problems import Problem
from ._results import CLOSE, FEW, SMALL, Row, Study, geometric_mean, load
from ._runs import PLAN, Plan

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS, plan: Plan = PLAN) -> pathlib.Path:
    """Fill in the marked parts of `operators.md`, draw its figures, and return the page's path."""
    study = load(results, plan)
    rows = study.rows()
    if not rows:
        raise SystemExit("No method was run in every setting. Run `python -m studies.operators`.")
    page = docs / "operators.md"
    text = page.read_text()
    for name, shown in (
        ("goal", _goal(study, rows)),
        ("summary", _summary(rows, max(plan.effort.samples))),
        ("problems", "\n".join(_table(study, problem) for problem in plan.problems)),
    ):
        text, number = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, shown=shown: f"{match[1]}{shown}{match[2]}",
            text,
            flags=re.DOTALL,
        )
        if number != 1:
            raise ValueError(f"{page} should have one part between `{name}` comments, not {number}")
    page.write_text(text)
    draw_few(study, rows, docs / "images" / "operators.svg")
    draw_all(rows, docs / "images" / "operators-methods.svg")
    return page


def _goal(study: Study, rows: list[Row]) -> str:
    pairs, there = len(study.plan.pairs()), len(study.shares)
    good = [f"`{row.name}`" for row in rows if row.meets_the_goal]
    whole = there == pairs
    which = "No method" if whole else f"None of the {len(rows) - 1} methods measured so far"
    met = f"{', '.join(good) or which} met it."
    left = "" if whole else f" {there} of {pairs} pairs of problem and method were run."
    return _filled(
        f"The goal was set in advance: at most {SMALL:.0%} of the parameters of each model; a "
        f"lower error than full fine-tuning in most settings with at most {FEW} samples; at most "
        f"{CLOSE - 1:.0%} more than it at {max(study.plan.effort.samples)}, in the geometric mean "
        f"over the problems. **{met}**{left}"
    )


def _summary(rows: list[Row], most: int) -> str:
    lines = [
        f"| method | trained | beats full, ≤ {FEW} | error / full's, ≤ {FEW} "
        f"| error / full's at {most} | worst at {most} | best rate lowest, highest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**`{row.name}`**" if row.meets_the_goal else f"`{row.name}`"
        shares = dict.fromkeys(map(_percent, (min(row.shares), max(row.shares))))
        lines.append(
            f"| {name} | {' to '.join(shares)} | {row.wins} of {len(row.few)} "
            f"| {geometric_mean(row.few):.2f} | {geometric_mean(row.most):.2f} "
            f"| {max(row.most):.2f} | {row.edges[0]:.0%}, {row.edges[1]:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _table(study: Study, problem: Problem) -> str:
    samples = study.plan.effort.samples
    parts, text = [f"### {problem.title}\n"], problem.text
    source, none = (study.plain.get((problem.name, name)) for name in ("source", "none"))
    if source is not None and none is not None:
        text += (
            f" The pretrained model has an error of {source:.3f} in its own setting, and of "
            f"{none:.3f} in the shifted one."
        )
    parts += [_filled(text), f"| method | trained | {' | '.join(map(str, samples))} | seconds |"]
    parts.append("|---" * (len(samples) + 3) + "|")
    for method in study.plan.methods:
        share = study.share(problem, method.name)
        cells = [study.cell(problem, method.name, n) for n in samples]
        if method.on(problem.family) is not method or share is None or not any(cells):
            continue
        full = [study.cell(problem, "full", n) for n in samples]
        shown = [
            "" if own is None else f"**{own}**" if ref and own.mean < ref.mean else str(own)
            for own, ref in zip(cells, full, strict=True)
        ]
        seconds = statistics.fmean(cell.seconds for cell in cells if cell)
        columns = [f"`{method.name}`", _percent(share), *shown, f"{seconds:.1f}"]
        parts.append(f"| {' | '.join(columns)} |")
    return "\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 2 if share < 0.01 else 1}f} %"

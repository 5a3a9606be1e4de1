"""Write tables of `sequence-study.md` and `combining.md` in `docs/evidence` from the records."""

import pathlib
import statistics

from .._pages import DOCS, fill, filled, percent
from ._goals import GOALS
from ._merging import PAIRS
from ._results import (
    Cell,
    Study,
    final,
    learned,
    source_after,
    source_before,
    transfer,
)
from ._runs import PLAN, Plan
from ._ways import EACH, FULL, REPLAYED


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS, plan: Plan = PLAN) -> pathlib.Path:
    """Fill the marked sections of both pages, and return the path of the study's page."""
    page = docs / "sequence-study.md"
    for number, operator in enumerate(plan.operators):
        study, suffix = Study(results, plan, operator), f"-{operator.name}" if number else ""
        if study.cell(FULL) is None:
            raise SystemExit(f"No sequence of {operator.name} was run. Run the study first.")
        sections = {"goals": _goals(study), "table": _table(study), "settings": _settings(study)}
        fill(page, {f"{name}{suffix}": section for name, section in sections.items()})
        if not number:
            fill(docs / "combining.md", {"merges": _merges(study)})
    return page


def _goals(study: Study) -> str:
    measures, lines = study.measures(), ["| goal | measured, % | met |", "|---|---|---|"]
    for text, compare in GOALS:
        try:
            found, limit = compare(measures)
        except KeyError as err:
            lines.append(f"| {text} | {err} was not run | |")
            continue
        met = "yes" if found <= limit else "**no**"
        lines.append(f"| {text} | {100 * found:.2f}, at most {100 * limit:.2f} | {met} |")
    return "\n".join(lines) + "\n"


def _table(study: Study) -> str:
    head = ("way", "trained", "final error on all", "error right after a task")
    head += ("backward transfer", "source: before, after", "rates", "weights", "seeds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    cells = {way.name: study.cell(way.name) for way in study.plan.ways}
    full = cells[FULL]
    for name, cell in cells.items():
        if cell is None or full is None:
            continue
        trained = cell.runs[0]["trained"]
        source = f"{100 * cell.mean(source_before):.2f}, {cell.spread(source_after)}"
        columns = (name, f"{trained:,} ({percent(trained / full.runs[0]['trained'])})")
        columns += tuple(cell.spread(number) for number in (final, learned, transfer))
        columns += (source, _numbers(cell, "rate"), _weights(cell), str(len(cell.runs)))
        lines.append(f"| {' | '.join(columns)} |")
    run = [cell for cell in cells.values() if cell is not None]
    edges, number = sum(cell.edges for cell in run), sum(len(cell.runs) for cell in run)
    expected = len(cells) * min(study.plan.effort.seeds, study.operator.seeds)
    note = (
        f"{expected - number} of the {expected} searches are missing. {edges} of the chosen rates "
        f"and weights are an end of what was tried. All sequences together took "
        f"{study.seconds():.0f} seconds of CPU time, compiling included."
    )
    return "\n".join(lines) + "\n\n" + filled(note)


def _settings(study: Study) -> str:
    labels = study.operator.labels
    head = ["way", *labels]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    full = study.cell(FULL)
    assert full is not None
    untouched = [100 * full.mean(lambda run, i=i: run["errors"][0][i]) for i in range(len(labels))]
    lines.append(f"| the pretrained model | {' | '.join(f'{x:.2f}' for x in untouched)} |")
    for way in study.plan.ways:
        cell = study.cell(way.name)
        if cell is not None:
            means = [cell.mean(lambda run, i=i: run["errors"][-1][i]) for i in range(len(labels))]
            lines.append(f"| {way.name} | {' | '.join(f'{100 * x:.2f}' for x in means)} |")
    return "\n".join(lines) + "\n"


def _merges(study: Study) -> str:
    return "\n".join(_pair(study, pair) for pair in PAIRS)


def _pair(study: Study, pair: tuple[int, int]) -> str:
    first, second = (study.operator.labels[setting] for setting in pair)
    head = ("method", "mean error", first, second, "source", "density", "weight", "seeds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    names = {EACH: "the right adapter for each setting", FULL: "the pretrained model"}
    names |= {REPLAYED: f"one LoRA, trained on all settings up to {second} with replay"}
    for name, mean in study.references(pair).items():
        lines.append(f"| *{names[name]}* | {100 * mean:.2f} | | | | | | |")
    for merge in study.plan.merges:
        cell = study.cell(merge.name) if merge.pair == pair else None
        if cell is None:
            continue
        mean = cell.spread(lambda run: statistics.fmean(run["errors"][s] for s in pair))
        columns = [merge.row, mean]
        for setting in (*pair, 0):
            columns.append(f"{100 * cell.mean(lambda run, s=setting: run['errors'][s]):.2f}")
        columns += [_numbers(cell, "rate") if merge.is_sparse else "", _numbers(cell, "weight")]
        lines.append(f"| {' | '.join(columns)} | {len(cell.runs)} |")
    return "\n".join(lines) + "\n"


def _weights(cell: Cell) -> str:
    return "" if {run["weight"] for run in cell.runs} == {1.0} else _numbers(cell, "weight")


def _numbers(cell: Cell, name: str) -> str:
    return ", ".join(f"{run[name]:g}" for run in cell.runs)

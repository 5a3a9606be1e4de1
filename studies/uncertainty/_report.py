"""Write the verdicts and the table of `docs/uncertainty.md` from the records."""

import pathlib
from collections import defaultdict

from .._pages import DOCS, fill
from .._records import Record, read
from ._goals import GOALS, Chosen, mean


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the marked sections of the page, and print the verdicts."""
    chosen = at_best_rates(read(results))
    verdicts = "\n".join(f"* {line}" for line in verdict_lines(chosen)) + "\n"
    print(verdicts, end="")
    page = docs / "uncertainty.md"
    not_run = "Not run yet: `python -m studies.uncertainty`.\n"
    fill(page, {"study": f"{verdicts}\n{_table(chosen)}" if chosen else not_run})
    return page


def at_best_rates(records: list[Record]) -> Chosen:
    """The records with the lowest held-out CRPS, by problem, way and number of simulations."""
    best: dict[tuple[str, str, int, int], Record] = {}
    for record in records:
        key = record["problem"], record["way"], record["samples"], record["seed"]
        if key not in best or record["held_out_crps"] < best[key]["held_out_crps"]:
            best[key] = record
    chosen: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for (problem, way, samples, _), record in best.items():
        chosen[problem, way, samples].append(record)
    return chosen


def verdict_lines(chosen: Chosen) -> list[str]:
    """A line for each goal: met, denied with the numbers, or not run yet."""
    lines: list[str] = []
    for text, measure in GOALS:
        cells = measure(chosen)
        denied = [f"{value:.3g}" for low, value, high in cells if not low <= value <= high]
        shown = ", ".join(f"{value:.3g}" for _, value, _ in cells)
        verdict = f"**denied** in {len(denied)} of {len(cells)} cells" if denied else "met"
        lines.append(f"{text}: {verdict} ({shown})" if cells else f"{text}: not run yet")
    return lines


def _table(chosen: Chosen) -> str:
    names = ("coverage", "raw_coverage", "crps", "constant_crps", "rank_correlation", "error")
    head = ("problem", "members", "simulations", "coverage of 90 %", "raw", "CRPS x 1000")
    head += ("constant width", "rank correlation", "error", "seeds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (problem, way, samples), records in sorted(chosen.items()):
        scales = (100, 100, 1000, 1000, 1, 1)
        numbers = [f"{s * mean(records, n):.3g}" for n, s in zip(names, scales, strict=True)]
        cells = [problem, way, str(samples), *numbers, str(len(records))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

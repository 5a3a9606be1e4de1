"""Write the verdicts and the table of `docs/evidence/uncertainty.md` from the records."""

import pathlib
from collections import defaultdict

from .._pages import DOCS, fill
from .._records import Record, read
from ._distances import DISTANCES
from ._goals import GOALS, Chosen, mean, ratio
from ._problems import PROBLEMS
from ._ways import ADAPTERS, WAYS


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the marked sections of the page, and print the verdicts."""
    chosen = at_best_rates(read(results))
    verdicts = "\n".join(f"* {line}" for line in verdict_lines(chosen)) + "\n"
    print(verdicts, end="")
    page = docs / "uncertainty.md"
    not_run = "Not run yet: `python -m studies.uncertainty`.\n"
    fill(
        page,
        {
            "study": f"{verdicts}\n{_table(chosen)}" if chosen else not_run,
            "members": _members(chosen) if chosen else not_run,
            "unlike": _unlike(chosen) if chosen else not_run,
        },
    )
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
    names = ("coverage", "raw_coverage", "conformal_coverage", "crps", "constant_crps")
    names += ("rank_correlation", "error")
    head = ("problem", "error bars", "simulations", "coverage of 90 %", "raw")
    head += ("conformal, constant width", "CRPS x 1000", "constant width", "rank correlation")
    head += ("error", "CRPS to five adapters, same seeds", "seeds")
    rows = [head, ("---",) * len(head)]
    for (problem, way, samples), records in sorted(chosen.items()):
        scales = (100, 100, 100, 1000, 1000, 1, 1)
        numbers = [f"{s * mean(records, n):.3g}" for n, s in zip(names, scales, strict=True)]
        beside = ratio(records, chosen.get((problem, ADAPTERS, samples), []))
        rows.append((problem, way, str(samples), *numbers, f"{beside:.2f}", str(len(records))))
    return _lines(rows)


def _members(chosen: Chosen) -> str:
    """With and without new inputs in the calibration, by the number of members."""
    head = ("problem", "simulations", "members", "coverage of 90 %", "CRPS x 1000")
    head += ("coverage with `new_x`", "CRPS x 1000 with `new_x`", "seeds")
    rows = [head, ("---",) * len(head)]
    members = {way.name: way.members for way in WAYS if way.name.endswith(" adapters")}
    values = {problem.name: len(problem.values) for problem in PROBLEMS}
    cells = [
        (problem, samples, values[problem] or members[way], records)
        for (problem, way, samples), records in chosen.items()
        if way in members
    ]
    scales = {"coverage": 100, "crps": 1000, "new_x_coverage": 100, "new_x_crps": 1000}
    for problem, samples, number, records in sorted(cells, key=lambda cell: cell[:3]):
        seeds = [{r["seed"] for r in c[3]} for c in cells if c[:2] == (problem, samples)]
        records = [r for r in records if r["seed"] in set.intersection(*seeds)]
        shown = [f"{scale * mean(records, name):.3g}" for name, scale in scales.items()]
        rows.append((problem, str(samples), str(number), *shown, str(len(records))))
    return _lines(rows)


def _unlike(chosen: Chosen) -> str:
    head = ("problem", "simulations", "inputs", "coverage of 90 %")
    head += (
        "told apart by the standard deviation",
        "by the input's spectrum",
        "by the output's spectrum",
    )
    rows = [head, ("---",) * len(head)]
    for (problem, _, samples), records in sorted(chosen.items()):
        kinds = [k for k in ("rough", "large", "outside") if f"{k}_coverage" in records[0]]
        for kind in kinds:
            tries = [mean(records, f"{kind}_{name}_auroc") for name in DISTANCES]
            share = f"{100 * mean(records, f'{kind}_coverage'):.3g}"
            rows.append((problem, str(samples), kind, share, *(f"{x:.2f}" for x in tries)))
    return _lines(rows)


def _lines(rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)

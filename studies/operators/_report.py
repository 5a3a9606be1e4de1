"""Write the tables and figures of `docs/operators.md` from the records of the runs."""

import itertools
import math
import pathlib
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._figures import draw_all, draw_few
from ._methods import METHODS
from ._problems import FULL, PROBLEMS, Problem
from ._runs import read

DOCS = pathlib.Path(__file__).parents[2] / "docs"
FEW = 16  # samples at most, where an adapter should beat full fine-tuning
MOST = 128  # samples, where an adapter should be close to full fine-tuning
CLOSE, SMALL = 1.05, 0.03


class Cell(NamedTuple):
    """The test errors of the seeds of one setting, each at its best rate by validation."""

    errors: tuple[float, ...]
    seconds: float  # the median run
    edges: tuple[int, int]  # the seeds whose best rate is the lowest, the highest

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.errors)

    def __str__(self) -> str:
        spread = statistics.stdev(self.errors) if len(self.errors) > 1 else 0.0
        return f"{self.mean:.4f} ± {spread:.4f}"


@dataclass(frozen=True)
class Study:
    """All results, by the names of problem and method, and the number of samples."""

    cells: dict[tuple[str, str, int], Cell]
    shares: dict[tuple[str, str], float]  # of the parameters that train
    plain: dict[tuple[str, str], float]  # errors of the pretrained models, "source" and "none"

    def cell(self, problem: Problem, method: str, samples: int) -> Cell | None:
        """The results in one setting; methods that do the same on a model share them."""
        return self.cells.get((problem.name, _same(problem, method), samples))

    def share(self, problem: Problem, method: str) -> float | None:
        """The share of the parameters that train."""
        return self.shares.get((problem.name, _same(problem, method)))

    def ratios(self, method: str, samples: tuple[int, ...]) -> list[float]:
        """The mean error over that of full fine-tuning, in each setting that has both."""
        pairs = (
            (self.cell(problem, method, n), self.cell(problem, "full", n))
            for problem in PROBLEMS
            for n in samples
        )
        return [own.mean / full.mean for own, full in pairs if own and full]


class Row(NamedTuple):
    """One method over all problems."""

    name: str
    shares: list[float]
    few: list[float]  # ratios at few samples
    most: list[float]  # ratios at most samples
    edges: tuple[int, int, int]  # best rates at the lower end, at the upper end, in all

    @property
    def wins(self) -> int:
        """The settings with few samples in which it beats full fine-tuning."""
        return sum(ratio < 1 for ratio in self.few)

    @property
    def meets_the_goal(self) -> bool:
        """Few parameters, most wins, close at the end: what the study asks for."""
        close = bool(self.most) and geometric_mean(self.most) <= CLOSE
        return max(self.shares) <= SMALL and 2 * self.wins > len(self.few) and close


def load(path: pathlib.Path) -> Study:
    """The results of a file: of each setting and seed, the rate with the best validation."""
    runs: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    plain, shares = {}, {}
    for record in read(path):
        problem, method = record["problem"], record["method"]
        if record["samples"] == 0:
            plain[problem, method] = record["test"]
        else:
            runs[problem, method, record["samples"], record["seed"]].append(record)
            shares[problem, method] = record["trained"] / record["total"]
    found: dict[Any, list[tuple[dict[str, Any], list[float]]]] = defaultdict(list)
    for (*setting, _), at_rates in runs.items():
        best = min(at_rates, key=lambda record: record["validation"])
        found[tuple(setting)].append((best, sorted(record["rate"] for record in at_rates)))
    cells = {
        setting: Cell(
            tuple(best["test"] for best, _ in seeds),
            statistics.median(best["seconds"] for best, _ in seeds),
            (
                sum(best["rate"] == rates[0] for best, rates in seeds if best["best_step"]),
                sum(best["rate"] == rates[-1] for best, rates in seeds if best["best_step"]),
            ),
        )
        for setting, seeds in found.items()
    }
    return Study(cells, shares, plain)


def rows_of(study: Study) -> list[Row]:
    """The methods that were run on every problem, the best at few samples first."""
    rows = []
    few = tuple(n for n in FULL.samples if n <= FEW)
    for method in METHODS:
        shares = [study.share(problem, method.name) for problem in PROBLEMS]
        known = [share for share in shares if share is not None]
        cells = [
            study.cell(problem, method.name, n)
            for problem, n in itertools.product(PROBLEMS, FULL.samples)
        ]
        there = [cell for cell in cells if cell is not None]
        if len(there) < len(cells):
            continue
        low, high = (sum(cell.edges[end] for cell in there) for end in (0, 1))
        seeds = sum(len(cell.errors) for cell in there)
        ratios = study.ratios(method.name, few), study.ratios(method.name, (MOST,))
        rows.append(Row(method.name, known, *ratios, (low, high, seeds)))
    return sorted(rows, key=lambda row: geometric_mean(row.few))


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill in the marked parts of `operators.md`, draw its figures, and return the page's path."""
    study = load(results)
    rows = rows_of(study)
    page = docs / "operators.md"
    text = page.read_text()
    for name, shown in (
        ("state", _state(study, rows)),
        ("summary", _summary(rows)),
        ("problems", "\n".join(_table(study, problem) for problem in PROBLEMS)),
    ):
        text, number = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, shown=shown: f"{match[1]}{shown}{match[2]}",
            text,
            flags=re.DOTALL,
        )
        if number != 1:
            raise ValueError(f"{page} should have one part between `{name}` comments: {number}")
    page.write_text(text)
    draw_few(study, rows, docs / "images" / "operators.svg")
    draw_all(rows, docs / "images" / "operators-methods.svg")
    return page


def geometric_mean(ratios: list[float]) -> float:
    """The mean of ratios: of a ratio and its inverse it is 1."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _state(study: Study, rows: list[Row]) -> str:
    runs = sum(method.on(p.family) is method for method in METHODS for p in PROBLEMS)
    there = len(study.shares)
    if not rows:
        return f"{there} of {runs} pairs of problem and method were run.\n"
    good = [f"`{row.name}`" for row in rows if row.meets_the_goal]
    asked = (
        f"The goal was set in advance: at most {SMALL:.0%} of the parameters of each model, a lower "
        f"error than full fine-tuning in most settings with at most {FEW} samples, and at most "
        f"{CLOSE - 1:.0%} more than it at {MOST}, in the geometric mean over the problems."
    )
    met = f"It is met by {', '.join(good)}." if good else "No method meets it."
    left = "" if there == runs else f" ({there} of {runs} pairs of problem and method were run.)"
    return f"{asked} **{met}**{left}\n"


def _summary(rows: list[Row]) -> str:
    lines = [
        f"| method | trained | beats full, ≤ {FEW} samples | error / full's, ≤ {FEW} "
        f"| error / full's at {MOST} | worst at {MOST} | best rate at the ends |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high, seeds = row.edges
        name = f"**`{row.name}`**" if row.meets_the_goal else f"`{row.name}`"
        lines.append(
            f"| {name} | {_percent(min(row.shares))} to {_percent(max(row.shares))} "
            f"| {row.wins} of {len(row.few)} | {geometric_mean(row.few):.2f} "
            f"| {geometric_mean(row.most):.2f} | {max(row.most):.2f} "
            f"| {low / seeds:.0%}, {high / seeds:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _table(study: Study, problem: Problem) -> str:
    source, none = (study.plain.get((problem.name, name)) for name in ("source", "none"))
    parts = [f"### {problem.title}\n", problem.text]
    if source is not None and none is not None:
        parts.append(
            f"The pretrained model has an error of {source:.4f} on its own setting, and of "
            f"{none:.4f} on the shifted one: {none / source:.0f} times as much.\n"
        )
    parts += [
        f"| method | trained | {' | '.join(map(str, FULL.samples))} | seconds |",
        "|---" * (len(FULL.samples) + 3) + "|",
    ]
    for method in METHODS:
        share = study.share(problem, method.name)
        if share is None or method.on(problem.family) is not method:
            continue
        cells = [study.cell(problem, method.name, n) for n in FULL.samples]
        full = [study.cell(problem, "full", n) for n in FULL.samples]
        shown = [
            "" if own is None else f"**{own}**" if ref and own.mean < ref.mean else str(own)
            for own, ref in zip(cells, full, strict=True)
        ]
        seconds = statistics.fmean(cell.seconds for cell in cells if cell)
        columns = [f"`{method.name}`", _percent(share), *shown, f"{seconds:.1f}"]
        parts.append(f"| {' | '.join(columns)} |")
    return "\n".join(parts) + "\n"


def _same(problem: Problem, method: str) -> str:
    return next(m for m in METHODS if m.name == method).on(problem.family).name


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"

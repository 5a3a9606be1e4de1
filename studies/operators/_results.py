"""Results from the records: the learning rate chosen, the error by setting, the ratios."""

import math
import pathlib
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._methods import METHODS
from ._problems import Problem
from ._runs import Plan, read

FEW = 16  # samples at most, where an adapter should beat full fine-tuning
CLOSE, SMALL = 1.05, 0.03  # its error over full fine-tuning's at the most samples; its share


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
        return f"{self.mean:.3f} ± {spread:.3f}"


class Row(NamedTuple):
    """One method over all problems; ratios are errors over those of full fine-tuning."""

    name: str
    shares: list[float]  # of the parameters that train
    few: list[float]  # ratios at few samples
    most: list[float]  # ratios at the most samples
    edges: tuple[float, float]  # the share of the best rates that are the lowest, the highest

    @property
    def wins(self) -> int:
        """The settings with few samples in which it beats full fine-tuning."""
        return sum(ratio < 1 for ratio in self.few)

    @property
    def meets_the_goal(self) -> bool:
        """Few parameters, most wins, close at the end: what the study asks for."""
        close = geometric_mean(self.most) <= CLOSE
        return max(self.shares) <= SMALL and 2 * self.wins > len(self.few) and close


@dataclass(frozen=True)
class Study:
    """All results, by the names of problem and method, and the number of samples."""

    plan: Plan
    cells: dict[tuple[str, str, int], Cell]
    shares: dict[tuple[str, str], float]  # of the parameters that train
    plain: dict[tuple[str, str], float]  # errors of the pretrained models, "source" and "none"

    def cell(self, problem: Problem, method: str, samples: int) -> Cell | None:
        """The results in one setting; methods that do the same on a model share them."""
        return self.cells.get((problem.name, _same(problem, method), samples))

    def share(self, problem: Problem, method: str) -> float | None:
        """The share of the parameters that train."""
        return self.shares.get((problem.name, _same(problem, method)))

    def rows(self) -> list[Row]:
        """The methods that were run in every setting, the best at few samples first."""
        rows = (self._row(method.name) for method in self.plan.methods)
        return sorted(filter(None, rows), key=lambda row: geometric_mean(row.few))

    def _row(self, method: str) -> Row | None:
        found: list[tuple[int, Cell, Cell]] = []
        for problem in self.plan.problems:
            for samples in self.plan.effort.samples:
                own, full = (self.cell(problem, name, samples) for name in (method, "full"))
                if own is None or full is None:
                    return None
                found.append((samples, own, full))
        most = max(self.plan.effort.samples)
        runs = sum(len(own.errors) for _, own, _ in found)
        low, high = (sum(own.edges[end] for _, own, _ in found) / runs for end in (0, 1))
        return Row(
            method,
            [share for p in self.plan.problems if (share := self.share(p, method)) is not None],
            [own.mean / full.mean for samples, own, full in found if samples <= FEW],
            [own.mean / full.mean for samples, own, full in found if samples == most],
            (low, high),
        )


def load(path: pathlib.Path, plan: Plan) -> Study:
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
    found: dict[Any, list[list[dict[str, Any]]]] = defaultdict(list)
    for (*setting, _), at_rates in runs.items():
        if len(at_rates) == len(plan.effort.rates):
            found[tuple(setting)].append(at_rates)
    cells = {s: _cell(seeds) for s, seeds in found.items() if len(seeds) == plan.effort.seeds}
    return Study(plan, cells, shares, plain)


def geometric_mean(ratios: list[float]) -> float:
    """The mean of ratios: of a ratio and its inverse it is 1."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _cell(seeds: list[list[dict[str, Any]]]) -> Cell:
    chosen = [min(at_rates, key=lambda record: record["validation"]) for at_rates in seeds]
    # Where nothing helped, no rate is better than another.
    rates = [
        (best["rate"], sorted(record["rate"] for record in at_rates))
        for best, at_rates in zip(chosen, seeds, strict=True)
        if best["best_step"] > 0
    ]
    return Cell(
        tuple(best["test"] for best in chosen),
        statistics.median(best["seconds"] for best in chosen),
        (sum(best == of[0] for best, of in rates), sum(best == of[-1] for best, of in rates)),
    )


def _same(problem: Problem, method: str) -> str:
    return next(m for m in METHODS if m.name == method).on(problem.family).name

"""Results from the records: the chosen learning rates, the error by setting, the ratios."""

import math
import pathlib
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._records import Record, read
from ._methods import Method
from ._problems import Problem
from ._runs import Done, Plan

# The goal: at most this fraction of the parameters, a lower error than full fine-tuning with up to
# this many samples, and at most this multiple of its error with the most samples.
SMALL, FEW, CLOSE = 0.03, 16, 1.05


class Cell(NamedTuple):
    """The test errors in one setting: one per seed, at the seed's best rate by validation."""

    errors: tuple[float, ...]
    seconds: float  # the median run
    edges: tuple[int, int]  # how many seeds have the lowest rate as their best, and the highest

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.errors)

    def __str__(self) -> str:
        if len(self.errors) == 1:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {statistics.stdev(self.errors):.3f}"


class Row(NamedTuple):
    """One method over all problems. A ratio is its error over full fine-tuning's error."""

    name: str
    shares: list[float]  # trainable fractions of the parameters
    few: list[float]  # ratios at few samples
    most: list[float]  # ratios at the most samples
    edges: tuple[float, float]  # how often the best rate is the lowest, and the highest

    @property
    def wins(self) -> int:
        """In how many settings with few samples the method beats full fine-tuning."""
        return sum(ratio < 1 for ratio in self.few)

    @property
    def meets_the_goal(self) -> bool:
        """Few parameters, most wins with few samples, close to full fine-tuning with many."""
        close = geometric_mean(self.most) <= CLOSE
        return max(self.shares) <= SMALL and 2 * self.wins > len(self.few) and close


class Kept(NamedTuple):
    """The errors in the shifted setting and in the source setting: means over so many seeds.

    - `deviation`: the largest relative difference of a repeated run from the first run.
    """

    test: float
    source: float
    seeds: int
    deviation: float


@dataclass(frozen=True)
class Study:
    """All results, by the names of problem and method, and the number of samples."""

    plan: Plan
    cells: dict[tuple[str, str, int], Cell]
    shares: dict[tuple[str, str], float]  # trainable fractions of the parameters
    plain: dict[tuple[str, str], float]  # errors of the pretrained models, "source" and "none"
    done: Done

    def cell(self, problem: Problem, method: str, samples: int) -> Cell | None:
        """The results in one setting. Methods that do the same on a model share the results."""
        return self.cells.get((problem.name, self._same(problem, method), samples))

    def share(self, problem: Problem, method: str) -> float | None:
        """The trainable fraction of the parameters."""
        return self.shares.get((problem.name, self._same(problem, method)))

    def is_complete(self, problem: Problem, method: Method) -> bool:
        """Whether the method was run with every number of samples that the plan has for it."""
        is_kept = method in self.plan.keeping
        numbers = (self.plan.kept,) if is_kept else self.plan.effort.samples
        return all(self.cell(problem, method.name, number) for number in numbers)

    def kept(self, problem: Problem, method: str) -> Kept | None:
        """What a method forgets, with the plan's `kept` samples, over the seeds that tell it."""
        name, runs = self._same(problem, method), list[tuple[Record, Record]]()
        for seed in range(self.plan.effort.seeds):
            best = self.done.chosen(problem.name, name, self.plan.kept, seed)
            told = None if best is None else self.done.with_source(best)
            if best is not None and told is not None:
                runs.append((best, told))
        if not runs or self.cell(problem, method, self.plan.kept) is None:
            return None
        test, source = (statistics.fmean(t[key] for _, t in runs) for key in ("test", "source"))
        deviation = max(abs(told["test"] / best["test"] - 1) for best, told in runs)
        return Kept(test, source, len(runs), deviation)

    def _same(self, problem: Problem, method: str) -> str:
        """The method that stands for all methods that do the same on the problem's model."""
        methods = (*self.plan.methods, *self.plan.keeping)
        return next(m for m in methods if m.name == method).on(problem.family).name

    def rows(self) -> list[Row]:
        """The methods that were run in every setting, the best at few samples first."""
        rows = (self._row(method.name) for method in self.plan.methods)
        return sorted(filter(None, rows), key=lambda row: geometric_mean(row.few))

    def _row(self, method: str) -> Row | None:
        cells: list[Cell] = []
        few: list[float] = []
        most: list[float] = []
        for problem in self.plan.problems:
            for samples in self.plan.effort.samples:
                cell, full = (self.cell(problem, name, samples) for name in (method, "full"))
                if cell is None or full is None:
                    return None
                cells.append(cell)
                if samples <= FEW:
                    few.append(cell.mean / full.mean)
                if samples == max(self.plan.effort.samples):
                    most.append(cell.mean / full.mean)
        runs = sum(len(cell.errors) for cell in cells)
        low, high = (sum(cell.edges[end] for cell in cells) / runs for end in (0, 1))
        shares = [self.share(problem, method) for problem in self.plan.problems]
        return Row(method, [s for s in shares if s is not None], few, most, (low, high))


def load(path: pathlib.Path, plan: Plan) -> Study:
    """Read the results of a file. Validation chooses the rate for each setting and seed."""
    runs: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    plain, shares = {}, {}
    done = Done(read(path))
    for record in done.records.values():
        problem, method = record["problem"], record["method"]
        if record["samples"] == 0:
            plain[problem, method] = record["test"]
        elif record["seed"] < plan.effort.seeds:
            runs[problem, method, record["samples"], record["seed"]].append(record)
            shares[problem, method] = record["trained"] / record["total"]
    settings: dict[Any, list[list[dict[str, Any]]]] = defaultdict(list)
    for (*setting, _), at_rates in runs.items():
        if len(at_rates) == len(plan.rates(setting[1])):
            settings[tuple(setting)].append(at_rates)
    cells = {s: _cell(seeds) for s, seeds in settings.items() if len(seeds) == plan.effort.seeds}
    return Study(plan, cells, shares, plain, done)


def geometric_mean(ratios: list[float]) -> float:
    """The mean for ratios: a ratio and its inverse have the mean 1."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _cell(seeds: list[list[dict[str, Any]]]) -> Cell:
    chosen = [min(at_rates, key=lambda record: record["validation"]) for at_rates in seeds]
    # Where no step helped, all rates are equal.
    rates = [
        (best["rate"], sorted(record["rate"] for record in at_rates))
        for best, at_rates in zip(chosen, seeds, strict=True)
        if best["best_step"] > 0
    ]
    return Cell(
        tuple(best["test"] for best in chosen),
        statistics.median(best["seconds"] for best in chosen),
        (
            sum(best == tried[0] for best, tried in rates),
            sum(best == tried[-1] for best, tried in rates),
        ),
    )

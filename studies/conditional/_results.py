"""Results from the records: the chosen rates, the errors by value, and the goal."""

import pathlib
import statistics
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._records import Record, read
from .._search import best_rates
from ._methods import FILM, FULL, POOLED
from ._runs import FIT, KEY, SETS, TARGET, UNTOUCHED, Plan, method_of
from ._tasks import Task

# The goal: at most this fraction of the parameters, and a lower error than every baseline in this
# fraction of the cells.
SMALL, MOST = 0.06, 0.8
BASELINES = (FULL, "full + channel", FILM.name, "film", POOLED, SETS)
Errors = tuple[float, ...]  # at each value of the task


class Cell(NamedTuple):
    """One method on one task with one number of samples, at each seed's best rates."""

    errors: dict[int, Errors]  # by seed
    seconds: float  # the median run
    share: float  # the fraction of the parameters that train
    at_edge: int  # how many seeds have their best rate at an edge of the rates that were tried

    def at(self, index: int) -> "Mean":
        """The errors at one value."""
        return Mean({seed: errors[index] for seed, errors in self.errors.items()})

    def only(self, seeds: Collection[int]) -> "Cell":
        """The cell with some of its seeds."""
        return self._replace(errors={seed: self.errors[seed] for seed in sorted(seeds)})

    def over(self, indices: range) -> "Mean":
        """The means over several values."""
        return Mean(
            {
                seed: statistics.fmean(errors[index] for index in indices)
                for seed, errors in self.errors.items()
            }
        )


class Mean(NamedTuple):
    """One error per seed."""

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    def ratio(self, other: "Mean") -> float | None:
        """The ratio of the means over the seeds that both have."""
        seeds = self.by_seed.keys() & other.by_seed.keys()
        if not seeds:
            return None
        sums = (sum(each.by_seed[seed] for seed in seeds) for each in (self, other))
        numerator, denominator = sums
        return numerator / denominator

    def __str__(self) -> str:
        errors = list(self.by_seed.values())
        spread = f" ± {statistics.stdev(errors):.4f}" if len(errors) > 1 else ""
        return f"{self.mean:.4f}{spread}"


class Goal(NamedTuple):
    """How far a method is from the goal: pairs `(won, of)`, and the largest share and change."""

    share: float
    baselines: tuple[int, int]
    targets: tuple[int, int]
    source: float  # the largest change of the source's error


class Fits(NamedTuple):
    """Fits of the parameter alone to a number of simulations, over draws and seeds."""

    z: list[float]
    error: Mean
    seconds: float


@dataclass(frozen=True)
class Study:
    """All results. Cells by task, method, samples, and the value of the target (or 0).

    `untouched` has the errors of the pretrained model, for each time that it was pretrained.
    `values` has the fits of `ValueFits` by task, name and value, and then by seed.
    """

    plan: Plan
    cells: dict[tuple[str, str, int, float], Cell]
    untouched: dict[str, list[Errors]]
    fits: dict[tuple[str, int, float], Fits]
    values: dict[tuple[str, str, float], dict[int, Record]] = field(default_factory=dict)

    def cell(self, task: Task, method: str, samples: int, value: float = 0.0) -> Cell | None:
        """The results of one method."""
        return self.cells.get((task.name, method, samples, value))

    def target(self, task: Task, samples: int, value: float) -> Mean | None:
        """The error of full fine-tuning at the value."""
        cell = self.cell(task, TARGET, samples, value)
        return cell and cell.at(task.values.index(value))

    def settings(self) -> list[tuple[Task, int, float]]:
        """All tasks, numbers of samples, and values inside the range."""
        return [
            (task, samples, value)
            for task in self.plan.tasks
            for samples in sorted(self.plan.effort.samples)
            for value in task.inside
        ]

    def goal(self, method: str) -> Goal:
        """The clauses of the goal, over all settings."""
        share, source = 0.0, 0.0
        baselines: list[bool] = []
        targets: list[bool] = []
        for task, samples, value in self.settings():
            cell = self.cell(task, method, samples)
            if cell is None:
                continue
            share = max(share, cell.share)
            # The run began with the pretrained model whose error is the nearer.
            starts = [errors[0] for errors in self.untouched[task.name]]
            ends = [errors[0] for errors in cell.errors.values()]
            source = max(source, *(min(abs(end - start) for start in starts) for end in ends))
            mean = cell.at(task.values.index(value))
            baselines += self._beats_all(mean, task, samples, value)
            target = self.target(task, samples, value)
            ratio = target and mean.ratio(target)
            targets += [] if ratio is None else [ratio <= 1]
        counts = [(sum(wins), len(wins)) for wins in (baselines, targets)]
        return Goal(share, counts[0], counts[1], source)

    def _beats_all(self, mean: Mean, task: Task, samples: int, value: float) -> list[bool]:
        """Whether the error is the lowest, in a list, or no result if a baseline is missing."""
        index = task.values.index(value)
        cells = [self.cell(task, name, samples) for name in BASELINES]
        ratios = [cell and mean.ratio(cell.at(index)) for cell in cells]
        if None in ratios:
            return []
        return [all(ratio < 1 for ratio in ratios if ratio is not None)]

    def one_against_four(self) -> tuple[int, int]:
        """How often the parameter, fitted to one simulation, is as good as full with four."""
        wins: list[bool] = []
        for task in self.plan.tasks:
            for value in task.inside:
                fits = self.fits.get((task.name, 1, value))
                target = self.target(task, 4, value)
                ratio = fits and target and fits.error.ratio(target)
                wins += [] if ratio is None else [ratio <= 1]
        return sum(wins), len(wins)


def load(path: pathlib.Path, plan: Plan) -> Study:
    """Read the results of a file. Validation chooses the rates for each setting and seed."""
    groups: dict[Any, dict[int, dict[Any, Record]]] = defaultdict(dict)
    untouched: dict[str, list[Errors]] = defaultdict(list)
    for record in (record for file in (*plan.files, path) for record in read(file)):
        if record["method"] == UNTOUCHED:
            untouched[record["task"]].append(tuple(record["errors"]))
            continue
        setting = tuple(record[name] for name in KEY[:4])
        seed = record["seed"]
        groups[setting].setdefault(seed, {})[record["rate"], record["ratio"]] = record
    cells, fits, values_of = {}, {}, {}
    for (task, method, samples, value), seeds in groups.items():
        if method == FIT:
            fits[task, samples, value] = _fits([at[0.0, 0.0] for at in seeds.values()])
        elif method.startswith(f"{FIT}, "):
            values_of[task, method, value] = {seed: at[0.0, 0.0] for seed, at in seeds.items()}
        elif cell := _cell(method, seeds):
            cells[task, method, samples, value] = cell
    return Study(plan, cells, untouched, fits, values_of)


def _cell(method: str, seeds: dict[int, dict[Any, Record]]) -> Cell | None:
    """The cell of the seeds whose search for rates is finished."""
    chosen = {seed: _chosen(method, tried) for seed, tried in seeds.items()}
    done = {seed: record for seed, record in chosen.items() if record is not None}
    if not done:
        return None
    first = next(iter(done.values()))
    at_edge = 0
    for seed, record in done.items():
        rates = {rate for rate, ratio in seeds[seed] if ratio == next(iter(seeds[seed]))[1]}
        moved = record.get("best_step", 0) > 0  # where no step helped, all rates are equal
        at_edge += moved and record["rate"] in (min(rates), max(rates))
    return Cell(
        {seed: tuple(record["errors"]) for seed, record in sorted(done.items())},
        statistics.median(record["seconds"] for record in done.values()),
        first["trained"] / first["total"],
        at_edge,
    )


def _chosen(method: str, tried: dict[Any, Record]) -> Record | None:
    if method == SETS:
        return tried[0.0, 0.0]
    rate, ratio = method_of(method).rate, method_of(method).ratio
    try:
        return tried[best_rates(rate, ratio, lambda *rates: tried[rates]["validation"])]
    except KeyError:  # the search is not finished
        return None


def _fits(records: list[Record]) -> Fits:
    return Fits(
        [z for record in records for z in record["z"]],
        Mean({record["seed"]: statistics.fmean(record["errors"]) for record in records}),
        statistics.median(record["seconds"] for record in records),
    )

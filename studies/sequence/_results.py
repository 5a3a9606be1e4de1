"""Results from the records: the chosen rates, and the measures of each way and each merge."""

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._records import Record
from ._goals import Measures
from ._problem import Operator
from ._runs import Plan, records
from ._ways import EACH, FULL, REPLAYED


class Cell(NamedTuple):
    """The runs of a way at the chosen rates, one for each seed."""

    runs: tuple[Record, ...]
    edges: int  # how many chosen rates and weights are the end of what was tried

    def spread(self, number: Callable[[Record], float]) -> str:
        """The mean over the seeds, with the least and the most."""
        values = [100 * number(run) for run in self.runs]
        mean = f"{statistics.fmean(values):.2f}"
        if len(values) == 1:
            return mean
        return f"{mean} ({min(values):.2f} to {max(values):.2f})"

    def mean(self, number: Callable[[Record], float]) -> float:
        """The mean over the seeds."""
        return statistics.fmean(number(run) for run in self.runs)


def final(run: Record) -> float:
    """The mean error on all settings after the last task."""
    return float(np.mean(_errors(run)[-1]))


def learned(run: Record) -> float:
    """The mean error on each task right after its training."""
    return float(np.mean(np.diagonal(_errors(run))[1:]))


def transfer(run: Record) -> float:
    """GEM's backward transfer, with `1 - error` as the accuracy. Negative: forgotten."""
    errors = _errors(run)
    return float(np.mean(np.diagonal(errors)[:-1] - errors[-1, :-1]))


def source_before(run: Record) -> float:
    """The pretrained model's error on the source."""
    return float(_errors(run)[0, 0])


def source_after(run: Record) -> float:
    """The error on the source after the last task."""
    return float(_errors(run)[-1, 0])


class Study:
    """The records of an operator, by way and by merge."""

    def __init__(self, path: pathlib.Path, plan: Plan, operator: Operator):
        self.plan, self.operator = plan, operator
        self._by_way: dict[str, dict[int, list[Record]]] = {}
        for record in records(path, operator).values():
            self._by_way.setdefault(record["way"], {}).setdefault(record["seed"], []).append(record)

    def cell(self, name: str) -> Cell | None:
        """The chosen run of each seed: see the page for the choice."""
        chosen, edges = [], 0
        starts = {way.name: way.weight for way in self.plan.ways}
        for _, runs in sorted(self._by_way.get(name, {}).items()):
            if name in starts:
                at_start = [run for run in runs if run["weight"] == starts[name]]
                first = min(at_start, key=lambda run: run["right_after"])
                edges += _is_edge(first, at_start, "rate")
                runs = [run for run in runs if run["rate"] == first["rate"]]
            best = min(runs, key=lambda run: run["validation"])
            edges += _is_edge(best, runs, "weight")
            chosen.append(best)
        return Cell(tuple(chosen), edges) if chosen else None

    def measures(self) -> Mapping[str, Measures]:
        """The measures of all ways that were run."""
        measures: dict[str, Measures] = {}
        for way in self.plan.ways:
            cell = self.cell(way.name)
            if cell is not None:
                growth = cell.mean(source_after) - cell.mean(source_before)
                means = (cell.mean(final), cell.mean(learned), cell.mean(transfer))
                measures[way.name] = Measures(*means, growth)
        return measures

    def seconds(self) -> float:
        """The CPU time of all sequences together."""
        runs = [run for seeds in self._by_way.values() for runs in seeds.values() for run in runs]
        return sum(run.get("seconds", 0.0) for run in runs)

    def references(self, pair: tuple[int, int]) -> dict[str, float]:
        """The pair's mean error with the right adapter, with replay, and untouched."""
        means: dict[str, float] = {}
        for name, stage in ((EACH, pair[1]), (REPLAYED, pair[1]), (FULL, 0)):
            cell = self.cell(name)
            if cell is not None:
                means[name] = cell.mean(
                    lambda run, stage=stage: float(np.mean([_errors(run)[stage, s] for s in pair]))
                )
        return means


def _errors(run: Record) -> Any:
    return np.asarray(run["errors"])


def _is_edge(best: Record, runs: Sequence[Record], name: str) -> bool:
    """Whether a chosen number is the least or the most of those tried, if several were."""
    values = {run[name] for run in runs}
    return len(values) > 1 and best[name] in (min(values), max(values))

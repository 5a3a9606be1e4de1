"""All runs of the study, each recorded as one line of a file."""

import functools
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._families import FULL, Effort
from .._records import Record, append, read
from .._search import best_rates
from ._fitting import Fitting
from ._merging import MERGES, Merge, Merging
from ._problem import MLP, OPERATORS, Operator, data
from ._ways import EACH, WAYS, Learner, Way

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "sequence.jsonl"
# Of a merge: its label, the density in the place of the rate, and the weight of both adapters.
KEY = ("operator", "way", "seed", "rate", "weight")
EFFORT = replace(FULL, pool=16)
EXTENSIONS = 8  # how often a search goes on beyond an edge of its grid


@dataclass(frozen=True)
class Plan:
    """The operators, the ways and the merges that the study runs, and the effort for each.

    The merges are of the first operator.
    """

    operators: Sequence[Operator] = OPERATORS
    ways: Sequence[Way] = WAYS
    merges: Sequence[Merge] = MERGES
    effort: Effort = EFFORT
    extensions: int = EXTENSIONS


PLAN = Plan()


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `operator/way/seed` matches `only`, and append to `path`."""
    runs = {o.name: Runs(records(path, o), plan, o) for o in plan.operators}
    jobs = [
        (operator, way, seed)
        for operator in plan.operators
        for seed in range(min(plan.effort.seeds, operator.seeds))
        for way in (*plan.ways, *(plan.merges if operator is plan.operators[0] else ()))
        if re.search(only, f"{operator.name}/{way.name}/{seed}")
    ]
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no operator/way/seed.")
    with append(path) as write:
        for operator, way, seed in jobs:
            begin = time.process_time()
            runs[operator.name].write = write
            if isinstance(way, Way):
                runs[operator.name].chosen(way, seed)
            else:
                runs[operator.name].merge(way, seed)
            name = f"{operator.name}/{way.name}/{seed}"
            print(f"{name}: {time.process_time() - begin:.0f} s", flush=True)


def records(path: pathlib.Path, operator: Operator) -> dict[tuple[Any, ...], Record]:
    """The records of an operator, by their keys. The first records were of one operator."""
    named = ({"operator": MLP.name} | record for record in read(path))
    return {
        tuple(record[name] for name in KEY): record
        for record in named
        if record["operator"] == operator.name
    }


class Runs:
    """Does sequences of tasks of an operator. A run whose record is there is not repeated."""

    def __init__(self, done: dict[Any, Record], plan: Plan, operator: Operator):
        self.done, self.plan, self.operator = done, plan, operator
        self.write: Callable[[Record], None] = lambda record: None
        self.fitting = Fitting(plan.effort, operator)
        self.learner = functools.cache(self._learner)
        self.merging = functools.cache(self._merging)

    def chosen(self, way: Way, seed: int) -> tuple[float, float]:
        """The rate that learns each task best, and the weight that ends best on all settings."""
        extensions = self.plan.extensions

        def right_after(rate: float, _: float) -> float:
            return self._learned(way, seed, rate, way.weight)["right_after"]

        rate, _ = best_rates(way.rate, 1.0, right_after, extensions)
        if way.weight == 1:
            return rate, way.weight

        def at_the_end(weight: float, _: float) -> float:
            return self._learned(way, seed, rate, weight)["validation"]

        return rate, best_rates(way.weight, 1.0, at_the_end, extensions)[0]

    def _learned(self, way: Way, seed: int, rate: float, weight: float) -> Record:
        key = (self.operator.name, way.name, seed, rate, weight)
        if key not in self.done:
            begin = time.process_time()
            learned = self.learner(seed).learn(way, rate, weight)
            content = {
                "right_after": round(statistics.fmean(learned.right_after), 6),
                "validation": round(statistics.fmean(learned.validations), 6),
                "errors": learned.errors,
                "steps": learned.steps,
                "trained": learned.trained,
                "seconds": round(time.process_time() - begin, 2),
            }
            self._record(key, content)
        return self.done[key]

    def merge(self, merge: Merge, seed: int) -> None:
        """Combine the adapters of two tasks in all variants of a method."""
        for density, weight in merge.variants():
            key = (self.operator.name, merge.name, seed, density, weight)
            if key not in self.done:
                errors, validation = self.merging(seed, merge.pair).errors(merge, density, weight)
                content = {"validation": round(validation, 6), "errors": errors}
                self._record(key, content)

    def _merging(self, seed: int, pair: tuple[int, int]) -> Merging:
        way = next(way for way in WAYS if way.name == EACH)
        learner = self.learner(seed)
        return Merging(learner, learner.learn(way, *self.chosen(way, seed)).sets, pair)

    def _record(self, key: tuple[Any, ...], content: Record) -> None:
        self.done[key] = dict(zip(KEY, key, strict=True)) | content
        self.write(self.done[key])

    def _learner(self, seed: int) -> Learner:
        effort = self.plan.effort
        simulations = data(self.operator, seed, effort)
        return Learner(self.operator.model(effort), simulations, self.fitting, seed)

"""All runs of the study, each recorded as one line of a file."""

import functools
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._families import FULL, Effort, pretrained
from .._records import Record, append, read
from .._search import best_rates
from ._fitting import Fitting
from ._problem import FAMILY, data
from ._ways import WAYS, Learner, Way

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "sequence.jsonl"
KEY = ("way", "seed", "rate", "weight")
EFFORT = replace(FULL, pool=16)
EXTENSIONS = 4  # how often a search goes on beyond an edge of its grid


@dataclass(frozen=True)
class Plan:
    """The ways that the study runs, and the effort for each."""

    ways: Sequence[Way] = WAYS
    effort: Effort = EFFORT
    extensions: int = EXTENSIONS


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `way/seed` matches `only`, and append to `path`."""
    runs = Runs({tuple(record[name] for name in KEY): record for record in read(path)}, plan)
    jobs = [
        (way, seed)
        for seed in range(plan.effort.seeds)
        for way in plan.ways
        if re.search(only, f"{way.name}/{seed}")
    ]
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no way/seed.")
    with append(path) as write:
        runs.write = write
        for way, seed in jobs:
            begin = time.process_time()
            rate, weight = runs.chosen(way, seed)
            seconds = time.process_time() - begin
            print(f"{way.name}/{seed}: rate {rate}, weight {weight}, {seconds:.0f} s", flush=True)


class Runs:
    """Does sequences of tasks. A run whose record is there is not repeated."""

    def __init__(self, done: dict[Any, Record], plan: Plan):
        self.done, self.plan = done, plan
        self.write: Callable[[Record], None] = lambda record: None
        self.fitting = Fitting(plan.effort)
        self.learner = functools.cache(self._learner)

    def chosen(self, way: Way, seed: int) -> tuple[float, float]:
        """The rate and the weight with the lowest validation error over all settings."""
        return best_rates(
            *(way.rate, way.weight),
            lambda rate, weight: self._validation(way, seed, rate, weight),
            self.plan.extensions,
        )

    def _validation(self, way: Way, seed: int, rate: float, weight: float) -> float:
        key = (way.name, seed, rate, weight)
        if key not in self.done:
            begin = time.process_time()
            learned = self.learner(seed).learn(way, rate, weight)
            record = dict(zip(KEY, key, strict=True)) | {
                "validation": round(statistics.fmean(learned.validations), 6),
                "errors": learned.errors,
                "steps": learned.steps,
                "trained": learned.trained,
                "seconds": round(time.process_time() - begin, 2),
            }
            self.done[key] = record
            self.write(record)
        return self.done[key]["validation"]

    def _learner(self, seed: int) -> Learner:
        effort = self.plan.effort
        return Learner(pretrained(FAMILY, effort), data(seed, effort), self.fitting, seed)

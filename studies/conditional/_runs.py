"""All runs of the study, in order of importance, each recorded as one line of a file."""

import pathlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .._families import Effort
from .._records import Record, append, read
from .._search import Evaluate, best_rates
from ._fitting import Given, State
from ._methods import FULL, HEADLINE, MAIN, METHODS, POOLED, SECOND, Method
from ._prepared import Prepared
from ._tasks import TASKS, Task
from ._value_fits import FITTED, ValueFits, forms_of

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "conditional.jsonl"
KEY = ("task", "method", "samples", "value", "seed", "rate", "ratio")
EFFORT = Effort(pool=32, test=64, samples=(16, 8, 32))
# Names in the records, beside the names of methods.
UNTOUCHED, TARGET, SETS = "none", "full at the value", "interpolated sets"
FIT, FITS = "fit", "fits of the value"


@dataclass(frozen=True)
class Job:
    """All runs of one method on one task, with one number of samples."""

    task: Task
    method: str
    samples: int
    seeds: Sequence[int]

    def __str__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.task.name}/{self.method}/{self.samples}, seeds {seeds}"


@dataclass(frozen=True)
class Plan:
    """What the study runs.

    The methods of `second` run with the first number of samples only, and from the first seed, as
    all methods do with the further numbers of samples, unless `repeats_all`. The names of
    `left_out` run not at all. Runs that stand in `files` are not repeated.
    """

    tasks: Sequence[Task] = TASKS
    main: Sequence[Method] = MAIN
    second: Sequence[Method] = SECOND
    effort: Effort = EFFORT
    left_out: Sequence[str] = (FITS,)
    repeats_all: bool = False
    files: Sequence[pathlib.Path] = ()

    def jobs(self) -> list[Job]:
        """All jobs, the most important first."""
        first, *further = self.effort.samples
        names = [*(method.name for method in self.main), TARGET, SETS]
        seconds = [method.name for method in self.second]
        most = max(self.effort.samples)
        order: list[tuple[str, int, Sequence[int]]] = [(name, first, (0,)) for name in names]
        order += [(FIT, most, (0,))]
        order += [(name, samples, (0,)) for samples in further for name in names]
        order += [(name, first, (0,)) for name in seconds]
        order += [(FITS, most, (0,))]
        seeds = range(1, self.effort.seeds)
        repeated = self.effort.samples if self.repeats_all else (first,)
        if seeds:
            order += [(name, samples, seeds) for samples in repeated for name in names]
            order += [(name, most, seeds) for name in (FIT, FITS)]
        jobs = [Job(task, *part) for part in order for task in self.tasks]
        return [job for job in jobs if job.method not in self.left_out and _is_distinct(job)]


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs of jobs whose `task/method/samples` matches, and append to `path`."""
    records = (record for file in (*plan.files, path) for record in read(file))
    runs = Runs({tuple(record[name] for name in KEY): record for record in records}, plan)
    jobs = [job for job in plan.jobs() if re.search(only, str(job))]
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no task/method/samples.")
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with append(path) as write, Progress(*columns) as progress:
        runs.write = write
        bar = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(bar, description=str(job))
            begin = time.process_time()
            try:
                runs.do(job)
            except Exception as err:  # go on with the next job
                failed.append(f"{job}: {err}")
                progress.print(failed[-1])
            if (seconds := time.process_time() - begin) > 1:
                progress.print(f"{job}: {seconds:.0f} s")
                jax.clear_caches()  # each program takes memory maps, which a process has few of
            progress.advance(bar)
    if failed:
        raise SystemExit("\n".join(["These failed:", *failed]))


class Runs:
    """Does jobs. A run whose record is there is not repeated."""

    def __init__(self, done: dict[Any, Record], plan: Plan):
        self.done, self.plan = done, plan
        self.write: Callable[[Record], None] = lambda record: None
        self._prepared: dict[str, Prepared] = {}

    def do(self, job: Job) -> None:
        """Do what is missing of a job, and write its records."""
        task, samples = job.task, job.samples
        if not self._known(task, UNTOUCHED, 0):
            errors = self._ready(task).untouched()
            self._record(task, UNTOUCHED, 0, errors=errors)
        for seed in job.seeds:
            if job.method == TARGET:
                for value in task.inside:
                    for number in (samples, samples // 4):
                        search(self, task, TARGET, number, value, seed)
            elif job.method == SETS:
                self._combine(task, samples, seed)
            elif job.method == FIT:
                self._fit(task, samples, seed)
            elif job.method == FITS:
                self._fit_values(task, samples, seed)
            else:
                search(self, task, job.method, samples, 0.0, seed)

    def validation(self, task: Task, name: str, samples: int, value: float, seed: int) -> Evaluate:
        """The validation error by rates: from the records, or from a run that is recorded."""

        def evaluate(rate: float, ratio: float) -> float:
            key = (task.name, name, samples, value, seed, rate, ratio)
            if key not in self.done:
                begin = time.process_time()
                outcome = self.train(task, name, samples, value, seed, rate, ratio)
                seconds = round(time.process_time() - begin, 3)
                trainable = jax.tree.leaves(outcome.trainable)
                self._record(
                    *(task, name, samples, value, seed, rate, ratio),
                    validation=round(float(outcome.validation), 6),
                    errors=outcome.errors,
                    best_step=int(outcome.best_step),
                    steps=int(outcome.steps),
                    seconds=seconds,
                    trained=sum(leaf.size for leaf in trainable),
                    total=self._ready(task).size(),
                )
            return self.done[key]["validation"]

        return evaluate

    def train(
        self,
        task: Task,
        name: str,
        samples: int,
        value: float,
        seed: int,
        rate: float,
        ratio: float,
    ) -> Any:
        """One run: on the pool of the task, or on simulations at one value."""
        ready, method = self._ready(task), method_of(name)
        if value:
            pool, values = ready.twice(value, seed), 1
        else:
            pool = ready.pool(seed, method.more)
            values = len(task.more if method.more else task.training)
        given = Given(samples, rate, ratio, values, method.replay)
        return ready.train(method, seed, pool, given)

    def _combine(self, task: Task, samples: int, seed: int) -> None:
        """Adapters of each training value, trained alone, and interpolated."""
        if self._known(task, SETS, samples, seed=seed):
            return
        ready, each = self._ready(task), samples // len(task.training)
        begin = time.process_time()
        sets = []
        for value in task.training:
            rates = search(self, task, POOLED, each, value, seed)
            sets.append(self.train(task, POOLED, each, value, seed, *rates).trainable)
        frozen = ready.parts(method_of(POOLED), seed)[1]
        errors = ready.interpolated(sets, frozen)
        self._record(
            *(task, SETS, samples, 0.0, seed),
            errors=errors,
            seconds=round(time.process_time() - begin, 3),
            trained=len(sets) * sum(leaf.size for leaf in jax.tree.leaves(sets[0])),
            total=ready.size(),
        )

    def _fit(self, task: Task, samples: int, seed: int) -> None:
        """The parameter alone, fitted to one, two and four simulations."""
        values = (*task.inside, *task.outside)
        missing = [
            (value, used)
            for value in values
            for used in (1, 2, 4)
            if not self._known(task, FIT, used, value, seed)
        ]
        if not missing:
            return
        ready = self._ready(task)
        state = self._trained(task, HEADLINE, samples, seed)
        jax.block_until_ready(ready.fitted(state, *missing[0][:1], seed, 1))  # compiles
        for value, used in missing:
            begin = time.process_time()
            z, errors = jax.block_until_ready(ready.fitted(state, value, seed, used))
            self._record(
                *(task, FIT, used, value, seed),
                errors=errors,
                z=_rounded(z),
                seconds=round((time.process_time() - begin) / len(z), 3),
            )

    def _fit_values(self, task: Task, samples: int, seed: int) -> None:
        """The value alone, fitted to one simulation, by several models and in several forms."""
        for method in filter(lambda method: method.on(task), map(method_of, FITTED)):
            missing = [
                (value, form)
                for value in (*task.inside, *task.outside)
                for form in forms_of(method, task)
                if not self._known(task, form.named(method.name), samples, value, seed)
            ]
            if not missing:
                continue
            state = self._trained(task, method.name, samples, seed)
            fits = ValueFits(self._ready(task), state, samples, seed)
            for value, form in missing:
                begin = time.process_time()
                z, errors = jax.block_until_ready(fits(value, form))
                self._record(
                    *(task, form.named(method.name), samples, value, seed),
                    errors=errors,
                    z=_rounded(z),
                    seconds=round(time.process_time() - begin, 3),
                )

    def _trained(self, task: Task, name: str, samples: int, seed: int) -> State:
        """The model of a method, trained at its best rates."""
        rates = search(self, task, name, samples, 0.0, seed)
        outcome = self.train(task, name, samples, 0.0, seed, *rates)
        _, frozen = self._ready(task).parts(method_of(name), seed)
        return jax.tree.map(
            lambda x, y: y if x is None else x, outcome.trainable, frozen, is_leaf=_is_none
        )

    def _ready(self, task: Task) -> Prepared:
        if task.name not in self._prepared:
            self._prepared[task.name] = Prepared(task, self.plan.effort)
        return self._prepared[task.name]

    def _known(self, task: Task, *key: Any, **named: Any) -> bool:
        return _key(task, *key, **named) in self.done

    def _record(self, task: Task, *key: Any, errors: Any, **content: Any) -> None:
        named = _key(task, *key)
        rounded = [round(float(error), 6) for error in np.asarray(errors)]
        self.done[named] = {**dict(zip(KEY, named, strict=True)), "errors": rounded, **content}
        self.write(self.done[named])


def search(
    runs: Runs, task: Task, name: str, samples: int, value: float, seed: int
) -> tuple[float, float]:
    """The rates with the lowest validation error."""
    method = method_of(name)
    evaluate = runs.validation(task, name, samples, value, seed)
    return best_rates(method.rate, method.ratio, evaluate)


def method_of(name: str) -> Method:
    """The method that a name in the records stands for."""
    name = FULL if name == TARGET else name
    return next(method for method in METHODS if method.name == name)


def _is_distinct(job: Job) -> bool:
    return job.method in (TARGET, SETS, FIT, FITS) or method_of(job.method).on(job.task)


def _rounded(z: Any) -> list[float]:
    return [float(f"{number:.6g}") for number in np.asarray(z)]


def _is_none(x: Any) -> bool:
    return x is None


def _key(
    task: Task,
    method: str,
    samples: int,
    value: float = 0.0,
    seed: int = 0,
    rate: float = 0.0,
    ratio: float = 0.0,
) -> tuple[Any, ...]:
    return (task.name, method, samples, value, seed, rate, ratio)

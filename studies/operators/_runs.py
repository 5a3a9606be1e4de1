"""All runs of the study, in order of importance, each recorded as one line of a file."""

import gc
import itertools
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jno.lora import JnoLoraWarning, Net

from .._families import FULL, Effort, pretrained, relative_errors, simulate
from .._records import Record, append, read
from ._fitting import Fields, Fitting, Replay
from ._methods import KEEPING, METHODS, Method
from ._problems import PROBLEMS, Problem

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "operators.jsonl"
# Only the study used simulations with these seeds.
_TEST_SEED, _POOL_SEED, _STORED_SEED = 1000, 2000, 3000
KEY = ("problem", "method", "samples", "seed", "rate")
KEPT = 16  # with up to this many samples, all methods are asked what they forget
STORED = 16  # simulations of the source, for the methods that keep it


@dataclass(frozen=True)
class Plan:
    """The problems and methods that the study runs, and the effort for each.

    - `further`: further factors of the rate, for a method whose best rate was at an end.
    """

    problems: Sequence[Problem]
    methods: Sequence[Method]
    effort: Effort
    keeping: Sequence[Method] = KEEPING
    further: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def rates(self, method: str) -> tuple[float, ...]:
        """The factors of a method's middle rate that are tried."""
        return (*self.further.get(method, ()), *self.effort.rates)

    @property
    def kept(self) -> int:
        """The number of samples with which all methods are asked what they forget."""
        return max(samples for samples in self.effort.samples if samples <= KEPT)

    def pairs(self) -> list[tuple[Problem, Method]]:
        """The pairs to run, the most important first, without methods that coincide on a model."""
        pairs = itertools.product((*self.methods, *self.keeping), self.problems)
        return [(p, method) for method, p in pairs if method.on(p.family) is method]


PLAN = Plan(PROBLEMS, METHODS, FULL)


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `problem/method/seed` matches `only`, and append to `path`."""
    done = Done(read(path))
    pairs: list[tuple[Problem, Method, list[int]]] = []
    for p, method in plan.pairs():
        named = {seed: f"{p.name}/{method.name}/{seed}" for seed in range(plan.effort.seeds)}
        if seeds := [seed for seed, name in named.items() if re.search(only, name)]:
            pairs.append((p, method, seeds))
    if not pairs:
        raise SystemExit(f"--only {only!r} selects no problem/method/seed.")
    prepared: dict[str, Prepared] = {}
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with append(path) as write, Progress(*columns) as progress:
        task = progress.add_task("", total=len(pairs))
        for problem, method, seeds in pairs:
            progress.update(task, description=f"{problem.name}: {method.name}")
            if problem.name not in prepared:
                prepared[problem.name] = Prepared(problem, plan.effort)
                for record in prepared[problem.name].untouched(done):
                    write(record)
            begin = time.process_time()
            try:
                ready = prepared[problem.name]
                samples = (plan.kept,) if method in plan.keeping else plan.effort.samples
                rates = plan.rates(method.name)
                for record in _run_pair(ready, method, samples, seeds, rates, done):
                    done.add(record)
                    write(record)
                for record in _repeated(ready, method, plan.kept, seeds, done):
                    done.add(record)
                    write(record)
            except Exception as err:  # go on with the next pair
                failed.append(f"{problem.name}/{method.name}: {err}")
                progress.print(failed[-1])
            seconds = time.process_time() - begin
            if seconds > 1:
                progress.print(f"{problem.name}: {method.name}, {seconds:.0f} s")
                gc.collect()
                jax.clear_caches()  # each of the hundreds of programs runs for one pair only
            progress.advance(task)
    if failed:
        raise SystemExit("\n".join(["These failed:", *failed]))


class Done:
    """The runs whose records are there.

    A run that was recorded without its error at the source is repeated for this error. Its later
    record has the same key. The first record is the run's result.
    """

    def __init__(self, records: Sequence[Record]):
        self.records: dict[tuple[Any, ...], Record] = {}
        self._with_source: dict[tuple[Any, ...], Record] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count one more record."""
        key = tuple(record[name] for name in KEY)
        self.records.setdefault(key, record)
        if "source" in record:
            self._with_source[key] = record

    def with_source(self, run: Record) -> Record | None:
        """The record of the same run that tells the error at the source, if there is one."""
        return self._with_source.get(tuple(run[name] for name in KEY))

    def chosen(self, *setting: Any) -> Record | None:
        """The run with the best rate of a problem, method, number of samples, and seed."""
        runs = [record for key, record in self.records.items() if key[:-1] == setting]
        return min(runs, key=lambda record: record["validation"]) if runs else None


class Prepared:
    """A pretrained model, and the simulations of a problem."""

    def __init__(self, problem: Problem, effort: Effort):
        family = problem.family
        self.problem, self.effort = problem, effort
        self.model = pretrained(family, effort)
        self.source = simulate(family, _TEST_SEED, effort.test, family.source)
        self.stored = simulate(family, _STORED_SEED, STORED, family.source)
        self.test = simulate(family, _TEST_SEED, effort.test, problem.target)
        self.pools = [
            simulate(family, _POOL_SEED + seed, effort.pool, problem.target)
            for seed in range(effort.seeds)
        ]
        self.total = _size(eqx.filter(self.model, eqx.is_inexact_array))
        self.fitting = Fitting(problem, effort)

    def untouched(self, done: Done) -> Iterator[Record]:
        """The records of the untouched model, in the source setting and in the shifted setting."""
        apply: Callable[..., Any] = eqx.filter_jit(self.problem.family.apply)
        for name, (fields, solutions) in (("source", self.source), ("none", self.test)):
            record = _named(self.problem, name, 0, 0, 0.0)
            if tuple(record.values()) not in done.records:
                errors = relative_errors(apply(self.model, fields), solutions)
                yield record | {"test": float(jnp.mean(errors))}

    def fitted(self, method: Method, net: Net, seed: int, samples: int, rate: float) -> Record:
        """The record of a run."""
        trainable, frozen = net.partition()
        replay = None
        if method.retain:
            replay = Replay(self.stored[0], self.model, jnp.asarray(method.retain))
        tests, key = (self.test, self.source), jax.random.key(seed)
        arguments = (self.pools[seed], tests, replay, key, jnp.asarray(samples), jnp.asarray(rate))
        begin = time.process_time()
        outcome = jax.device_get(self.fitting.run(trainable, frozen, *arguments))
        return _named(self.problem, method.name, samples, seed, rate) | {
            "validation": round(float(outcome.validation), 6),
            "test": round(float(outcome.test), 6),
            "source": round(float(outcome.source), 6),
            "best_step": int(outcome.best_step),
            "steps": int(outcome.steps),
            "seconds": round(time.process_time() - begin, 3),
            "trained": _size(trainable),
            "total": self.total,
        }

    def net(self, method: Method, seed: int, samples: int) -> Net:
        """The net of a run, before training."""
        fitting, key = self.fitting, jax.random.key(seed)

        def batches() -> list[Fields]:
            if method.from_data == "source":
                return [self.stored]
            pool, number = self.pools[seed], jnp.asarray(samples)
            return [fitting.batch(pool, key, number, step) for step in range(4)]

        with warnings.catch_warnings():  # small layers clamp the rank
            warnings.simplefilter("ignore", JnoLoraWarning)
            return method.applied(self.model, self.problem, seed, batches, fitting.loss)


def _run_pair(
    ready: Prepared,
    method: Method,
    numbers: Sequence[int],
    seeds: Sequence[int],
    rates: Sequence[float],
    done: Done,
) -> Iterator[Record]:
    """The missing runs with these numbers of samples and factors of the rate."""
    for seed in seeds:
        nets: dict[int, Net] = {}
        for samples in numbers:
            for factor in rates:
                rate = method.rate * factor
                named = _named(ready.problem, method.name, samples, seed, rate)
                if tuple(named.values()) in done.records:
                    continue
                start = samples if method.from_data == "training" else 0  # else starts are equal
                if start not in nets:
                    nets[start] = ready.net(method, seed, samples)
                yield ready.fitted(method, nets[start], seed, samples, rate)


def _repeated(
    ready: Prepared, method: Method, samples: int, seeds: Sequence[int], done: Done
) -> Iterator[Record]:
    """The chosen runs whose error at the source is not known, once more."""
    for seed in seeds:
        best = done.chosen(ready.problem.name, method.name, samples, seed)
        if best is not None and done.with_source(best) is None:
            net = ready.net(method, seed, samples)
            yield ready.fitted(method, net, seed, samples, best["rate"])


def _named(problem: Problem, method: str, samples: int, seed: int, rate: float) -> Record:
    return dict(zip(KEY, (problem.name, method, samples, seed, rate), strict=True))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""All runs of the study, in order of importance, each recorded as one line of a file."""

import gc
import itertools
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jno.lora import JnoLoraWarning

from .._families import FULL, Effort, pretrained, relative_errors, simulate
from .._records import append, read
from ._fitting import Fields, Fitting
from ._methods import METHODS, Method
from ._problems import PROBLEMS, Problem

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "operators.jsonl"
# Only the study used simulations with these seeds.
_TEST_SEED, _POOL_SEED = 1000, 2000
KEY = ("problem", "method", "samples", "seed", "rate")


@dataclass(frozen=True)
class Plan:
    """The problems and methods that the study runs, and the effort for each."""

    problems: Sequence[Problem]
    methods: Sequence[Method]
    effort: Effort

    def pairs(self) -> list[tuple[Problem, Method]]:
        """The pairs to run, the most important first, without methods that coincide on a model."""
        pairs = itertools.product(self.methods, self.problems)
        return [(p, method) for method, p in pairs if method.on(p.family) is method]


PLAN = Plan(PROBLEMS, METHODS, FULL)


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs of `problem/method` pairs that match `only`, and append to `path`."""
    done = {tuple(record[name] for name in KEY) for record in read(path)}
    pairs = [(p, m) for p, m in plan.pairs() if re.search(only, f"{p.name}/{m.name}")]
    if not pairs:
        raise SystemExit(f"--only {only!r} selects no problem/method.")
    prepared: dict[str, _Prepared] = {}
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with append(path) as write, Progress(*columns) as progress:
        task = progress.add_task("", total=len(pairs))
        for problem, method in pairs:
            progress.update(task, description=f"{problem.name}: {method.name}")
            if problem.name not in prepared:
                prepared[problem.name] = _Prepared(problem, plan.effort)
                for record in prepared[problem.name].untouched(done):
                    write(record)
            begin = time.process_time()
            try:
                for record in _run_pair(prepared[problem.name], method, done):
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


class _Prepared:
    """A pretrained model, and the simulations of a problem."""

    def __init__(self, problem: Problem, effort: Effort):
        family = problem.family
        self.problem, self.effort = problem, effort
        self.model = pretrained(family, effort)
        self.source = simulate(family, _TEST_SEED, effort.test, family.source)
        self.test = simulate(family, _TEST_SEED, effort.test, problem.target)
        self.pools = [
            simulate(family, _POOL_SEED + seed, effort.pool, problem.target)
            for seed in range(effort.seeds)
        ]
        self.fitting = Fitting(problem, effort)

    def untouched(self, done: set[Any]) -> Iterator[dict[str, Any]]:
        """The records of the untouched model, in the source setting and in the shifted setting."""
        apply: Callable[..., Any] = eqx.filter_jit(self.problem.family.apply)
        for name, (fields, solutions) in (("source", self.source), ("none", self.test)):
            record = _named(self.problem, name, 0, 0, 0.0)
            if tuple(record.values()) not in done:
                errors = relative_errors(apply(self.model, fields), solutions)
                yield record | {"test": float(jnp.mean(errors))}


def _run_pair(ready: _Prepared, method: Method, done: set[Any]) -> Iterator[dict[str, Any]]:
    effort, fitting = ready.effort, ready.fitting
    total = _size(eqx.filter(ready.model, eqx.is_inexact_array))
    for seed, pool in enumerate(ready.pools):
        key, nets = jax.random.key(seed), {}
        for samples in effort.samples:
            for factor in effort.rates:
                rate = method.rate * factor
                named = _named(ready.problem, method.name, samples, seed, rate)
                if tuple(named.values()) in done:
                    continue
                start = samples if method.from_data else 0  # the start depends on no other data
                if start not in nets:
                    nets[start] = _net(ready, method, seed, pool, samples)
                trainable, frozen = nets[start].partition()
                arguments = (pool, ready.test, key, jnp.asarray(samples), jnp.asarray(rate))
                begin = time.process_time()
                outcome = jax.device_get(fitting.run(trainable, frozen, *arguments))
                yield named | {
                    "validation": round(float(outcome.validation), 6),
                    "test": round(float(outcome.test), 6),
                    "best_step": int(outcome.best_step),
                    "steps": int(outcome.steps),
                    "seconds": round(time.process_time() - begin, 3),
                    "trained": _size(trainable),
                    "total": total,
                }


def _net(ready: _Prepared, method: Method, seed: int, pool: Fields, samples: int) -> Any:
    fitting = ready.fitting

    def batches() -> list[Fields]:
        key = jax.random.key(seed)
        return [fitting.batch(pool, key, jnp.asarray(samples), step) for step in range(4)]

    with warnings.catch_warnings():  # small layers clamp the rank
        warnings.simplefilter("ignore", JnoLoraWarning)
        return method.applied(ready.model, ready.problem, seed, batches, fitting.loss)


def _named(problem: Problem, method: str, samples: int, seed: int, rate: float) -> dict[str, Any]:
    return dict(zip(KEY, (problem.name, method, samples, seed, rate), strict=True))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""The runs of the study: each record is one model on one task."""

import itertools
import pathlib
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.progress import track

from jno.lora import JnoLoraWarning, Net, lora_trainable_filter, merge_lora
from jno.lora.extending import path_str
from jno_lora_combine import extract_lora

from .._families import FULL, Effort
from .._records import Record, append, read
from ..operators._methods import METHODS, Method
from ..operators._problems import PROBLEMS, Problem
from ..operators._runs import Prepared

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "extract.jsonl"
WHOLE = "full"
LEFTOVERS = ("drop", "keep")


@dataclass(frozen=True)
class Plan:
    """The tasks of the study, the ranks, and the effort for each run."""

    problems: Sequence[Problem]
    ranks: Sequence[int]
    effort: Effort

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that train, by name: full fine-tuning, and LoRA of each rank."""
        full, lora = (m for m in METHODS if m.name in (WHOLE, "lora"))
        ranks = {f"lora {r}": replace(lora, rank=r, spectral_rank=r) for r in self.ranks}
        return {WHOLE: full, **ranks}


PLAN = Plan(
    [problem for problem in PROBLEMS if problem.name in ("burgers-viscosity", "allen-cahn")],
    (1, 4, 16),
    replace(FULL, samples=(16, 128)),
)


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `problem/way/samples/seed` matches `only`."""
    done = {_name(**record) for record in read(path) if record["leftovers"] is None}
    settings = [
        (problem, {"way": way, "samples": samples, "seed": seed})
        for problem in plan.problems
        for way in plan.methods
        for samples in plan.effort.samples
        for seed in range(plan.effort.seeds)
    ]
    names = {_name(p.name, **setting): (p, setting) for p, setting in settings}
    if not (chosen := {name for name in names if re.search(only, name)}):
        raise SystemExit(f"--only {only!r} selects no problem/way/samples/seed.")
    task: Task | None = None
    with append(path) as write:
        for name in track([name for name in names if name in chosen - done], "Runs"):
            problem, setting = names[name]
            if task is None or task.problem is not problem:
                task = Task(problem, plan)
            for record in task.records(**setting):
                write(record)


def _name(problem: str, way: str, samples: int, seed: int, **_: Any) -> str:
    return f"{problem}/{way}/{samples}/{seed}"


class Task:
    """A pretrained model, and the simulations of a task."""

    def __init__(self, problem: Problem, plan: Plan):
        self.problem, self.plan = problem, plan
        self.ready = Prepared(problem, plan.effort)
        self._tuned: Any = eqx.filter_jit(self.ready.fitting.tuned)
        self._error: Any = eqx.filter_jit(self.ready.fitting.error)

    def records(self, way: str, samples: int, seed: int) -> Iterator[Record]:
        """The records of a setting: after full fine-tuning, also of each extracted adapter.

        The record of the trained model is the last, because a setting is done when it is there.
        """
        named = {"problem": self.problem.name, "way": way, "samples": samples, "seed": seed}
        method, model = self.plan.methods[way], self.ready.model
        net = self.ready.net(method, seed, samples)
        best, rate = self._best(net, method, samples, seed)
        tuned = merge_lora(eqx.combine(best.trainable, net.partition()[1]))
        if way == WHOLE:
            sizes = {path_str(keys): leaf.size for keys, leaf in _arrays(tuned)}
            for rank, leftovers in itertools.product(self.plan.ranks, LEFTOVERS):
                with warnings.catch_warnings():  # that little is kept, which the study measures
                    warnings.simplefilter("ignore", JnoLoraWarning)
                    adapted, report = extract_lora(model, tuned, rank=rank, leftovers=leftovers)
                kept = report.leftovers if leftovers == "keep" else ()
                trained = eqx.filter(adapted, lora_trainable_filter(adapted))
                yield named | {
                    "rank": rank,
                    "leftovers": leftovers,
                    "energy": round(statistics.median(float(row.energy) for row in report), 4),
                    "trained": _size(trained) + sum(sizes[path] for path in kept),
                    "test": self._test(merge_lora(adapted)),
                }
        yield named | {
            "rank": None,
            "leftovers": None,
            "rate": rate,
            "at_edge": rate in (method.rate * self.plan.effort.rates[end] for end in (0, -1)),
            "validation": round(float(best.validation), 6),
            "trained": _size(best.trainable),
            "test": self._test(tuned),
            "untouched": self._test(model),
        }

    def _best(self, net: Net, method: Method, samples: int, seed: int) -> tuple[Any, float]:
        """The best parameters over all learning rates, and their rate."""
        trainable, frozen = net.partition()
        arguments = (self.ready.pools[seed], None, jax.random.key(seed), jnp.asarray(samples))
        runs = [
            (self._tuned(trainable, frozen, *arguments, jnp.asarray(rate)), rate)
            for rate in (method.rate * factor for factor in self.plan.effort.rates)
        ]
        return min(runs, key=lambda run: float(run[0].validation))

    def _test(self, model: Any) -> float:
        return round(float(self._error(model, self.ready.test)), 6)


def _arrays(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))


def _size(tree: Any) -> int:
    return sum(leaf.size for _, leaf in _arrays(tree))

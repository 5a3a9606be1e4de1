"""The runs of networks: each way by Levenberg-Marquardt, then by Adam, on three equations."""

import functools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._families import CACHE
from ._equations import Equation
from ._solvers import Adam, LevenbergMarquardt, Solved, plain_vector
from ._tasks import KEY, Effort, Task, searched
from ._ways import (
    BASE,
    WAYS,
    Way,
    is_source_unchanged,
    new_network,
    residual_of,
    solutions,
)

LM = "Levenberg-Marquardt"


def pinn_tasks(effort: Effort) -> dict[str, list[Task]]:
    """Lists of tasks: for each equation and seed, the Jacobians, Adam."""
    tasks: dict[str, list[Task]] = {"adam": []}
    for equation in effort.equations:
        ready = _Prepared(equation, effort)
        for seed in range(effort.seeds):
            tasks[f"{equation.name} {seed}"] = [
                Task(f"pinn/{ready.name}/{way.name}/{LM}", _in_double(ready.solved, way, seed))
                for way in WAYS
            ]
        base = Task(f"pinn/{ready.name}/base", _in_double(ready.base_records))
        tasks[f"{equation.name} 0"].insert(0, base)
        jacobian = Task(f"jacobian/{ready.name}", _in_double(ready.jacobians))
        tasks.setdefault("jacobian", [jacobian])  # of the first equation
        tasks["adam"] += [
            Task(f"pinn/{ready.name}/{way.name}/Adam", _in_double(ready.by_adam, way))
            for way in WAYS
            if not (way.each or way.draws)
        ]
    return tasks


def _in_double(records: Any, *arguments: Any) -> Any:
    """Second derivatives and squares of residuals need double precision."""

    def double(done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
        generator = records(done, *arguments)
        while True:
            with jax.enable_x64(True):
                record = next(generator, None)
            if record is None:
                return
            yield record

    return double


class _Prepared:
    """An equation, its base, and its exact solutions."""

    def __init__(self, equation: Equation, effort: Effort):
        self.equation, self.effort, self.name = equation, effort, equation.name
        # The values that ways with arrays for each value train at.
        self.single = (equation.trained[-1], equation.inside[1], equation.outside[0])
        self.family = (equation.source, *equation.trained)
        self.judges: dict[str, Any] = {}

    @functools.cached_property
    def base(self) -> Any:
        """The network that knows the source."""
        file = CACHE / f"pinn-{self.name}.eqx"
        network = new_network(self.equation.inputs, jax.random.key(1))
        if self.effort.caches and file.exists():
            return eqx.tree_deserialise_leaves(file, network)
        trainable, frozen = eqx.partition(network, eqx.is_inexact_array)
        solver = LevenbergMarquardt(residual_of(BASE, self.equation), self.effort.base_steps)
        points = self.points(0, (self.equation.source,), 3)
        network = eqx.combine(solver(trainable, frozen, points).trainable, frozen)
        if self.effort.caches:
            CACHE.mkdir(exist_ok=True)
            eqx.tree_serialise_leaves(file, network)
        return network

    def points(self, seed: int, values: Any, times: int = 1) -> Any:
        """`times` the usual number of points for each value."""
        number = times * self.effort.points[self.equation.inputs - 1]
        keys = jax.random.split(jax.random.key(100 + seed), len(values))
        points = [self.equation.points(k, z, number) for k, z in zip(keys, values, strict=True)]
        return jnp.concatenate(points)

    def judge(self, way: Way) -> Any:
        """`judge(tree, points, zs)`: norms of the residual, and solutions on the grid. Compiled."""
        if way.name not in self.judges:
            residual = plain_vector(residual_of(way, self.equation))

            def judge(tree: Any, points: Any, zs: Any, x: Any) -> Any:
                split = eqx.partition(tree, eqx.is_inexact_array)

                def norm(points: Any) -> Any:
                    return jnp.sqrt(jnp.mean(residual(split[0], (split[1], points)) ** 2))

                norms = jax.lax.map(norm, points)
                return norms, jax.lax.map(lambda z: solutions(way, self.equation, tree, z, x), zs)

            self.judges[way.name] = eqx.filter_jit(judge)
        return self.judges[way.name]

    def outcome(self, way: Way, tree: Any, points: Any, values: Any) -> dict[str, Any]:
        """Norms of the residual at arrays of points, and the errors, by the value."""
        equation, x = self.equation, self.equation.grid(self.effort.test)
        norms, us = self.judge(way)(tree, jnp.stack(points), jnp.asarray(values), x)
        errors = {}
        for z, u in zip(values, np.asarray(us), strict=True):
            exact = np.asarray(equation.exact(z, x))
            errors[f"{z:g}"] = float(np.linalg.norm(u - exact) / np.linalg.norm(exact))
        norms = [float(norm) if jnp.isfinite(norm) else 1e30 for norm in norms]
        return {
            "residual": norms[0],
            "validation": norms[-1],
            "errors": {z: float(f"{error:.4g}") for z, error in errors.items()},
        }

    @property
    def all_values(self) -> tuple[float, ...]:
        """The source, the trained values, and the untrained values."""
        return (*self.family, *self.equation.inside, *self.equation.outside)

    def base_records(self, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
        named = self.named("base", LM, 0)
        if tuple(named.values()) not in done:
            points = [self.points(seed, (self.equation.source,), 3) for seed in (0, 50)]
            trained = size(eqx.filter(self.base, eqx.is_inexact_array))
            outcome = self.outcome(BASE, self.base, points, self.all_values)
            yield named | outcome | {"trained": trained}

    def named(self, way: str, by: str, seed: int, z: float = 0.0) -> dict[str, Any]:
        values = ("pinn", self.name, way, by, seed, z, 0.0, 0.0)
        return dict(zip(KEY, values, strict=True))

    def solved(self, done: dict[Any, Any], way: Way, seed: int) -> Iterator[dict[str, Any]]:
        """By Levenberg-Marquardt."""
        steps = self.effort.steps + (0 if way.from_base else self.effort.base_steps)
        solver = LevenbergMarquardt(residual_of(way, self.equation), steps)
        for z in self.single if way.each else (0.0,):
            named = self.named(way.name, LM, seed, z)
            if tuple(named.values()) in done:
                continue
            trainable, frozen = way.start(self.base, self.equation, jax.random.key(10 + seed))
            values = (z,) if way.each else (None,) * 5 if way.draws else self.family
            points = self.points(seed, values, 3 if way.each else 1)
            solved = solver(trainable, frozen, points)
            yield named | self.measured(way, solved, frozen, seed, values)

    def measured(
        self, way: Way, solved: Solved, frozen: Any, seed: int, values: Any
    ) -> dict[str, Any]:
        """What a record says of a run. New points of the trained values are for validation."""
        tree = eqx.combine(solved.trainable, frozen)
        points = [self.points(s, values, 3 if way.each else 1) for s in (seed, 50 + seed)]
        outcome = self.outcome(way, tree, points, values if way.each else self.all_values)
        return outcome | {
            "source unchanged": is_source_unchanged(way, self.equation, tree, self.base),
            "steps": int(solved.steps),
            "seconds": round(solved.seconds, 3),
            "temporary": solved.temporary,
            "trained": size(solved.trainable),
        }

    def by_adam(self, done: dict[Any, Any], way: Way) -> Iterator[dict[str, Any]]:
        """By Adam, at each rate of the grid."""
        trainable, frozen = way.start(self.base, self.equation, jax.random.key(10))
        steps = self.effort.adam_steps * (1 if way.from_base else 2)
        solver = Adam(residual_of(way, self.equation), steps)
        points = self.points(0, self.family)

        def at_rate(rate: float, factor: float) -> dict[str, Any]:
            scale = jax.tree.map(lambda x: jnp.ones_like(x), trainable)
            if way.has_input:
                weight = scale.layers[0].weight.at[:, -1].set(factor)
                scale = eqx.tree_at(lambda m: m.layers[0].weight, scale, weight)
            solved = solver(trainable, frozen, points, jnp.asarray(rate), scale)
            return self.measured(way, solved, frozen, 0, self.family)

        factors = (1.0, 30.0) if way.has_input else (1.0,)
        named = self.named(way.name, "Adam", 0)
        yield from searched(named, self.effort, done, factors, at_rate)

    def jacobians(self, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
        """Ten steps with each way to the Jacobian."""
        for way in WAYS[:2]:
            trainable, frozen = way.start(self.base, self.equation, jax.random.key(10))
            for jac in (None, "fwd", "bwd"):
                by = "vmap of the gradient" if jac is None else jac
                named = self.named(way.name, by, 0) | {"part": "jacobian"}
                if tuple(named.values()) in done:
                    continue
                residual = residual_of(way, self.equation)
                solver = LevenbergMarquardt(residual, 10, jac)
                outcome = solver(trainable, frozen, self.points(0, self.family)[::2])
                seconds = outcome.seconds / max(1, int(outcome.steps))
                yield named | {
                    "seconds": round(seconds, 5),
                    "temporary": outcome.temporary,
                    "trained": size(trainable),
                }


def size(tree: Any) -> int:
    """The number of numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

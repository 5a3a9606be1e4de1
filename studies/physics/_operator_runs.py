"""The runs of an operator on Darcy flow: by energy, by two norms of the residual, by 16 labels."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._families import CACHE, relative_errors
from . import _darcy as darcy
from ._darcy import Data, OperatorWay
from ._pinn_runs import size
from ._tasks import KEY, Effort, Task, searched

LABELS, BATCH = 16, 8


def operator_tasks(effort: Effort) -> dict[str, list[Task]]:
    """Lists of tasks for each seed."""
    ready = _Prepared(effort)
    family, single = (darcy.CONDITIONAL, darcy.WITH_INPUT), (darcy.LORA, darcy.FULL)
    pairs = [(way, by) for by in ("energy", "16 labels") for way in family]
    pairs += [(way, by) for by in darcy.LOSSES for way in single]
    tasks: dict[str, list[Task]] = {}
    for seed in range(effort.seeds):
        fitted = functools.partial(ready.fitted, seed=seed)
        tasks[f"darcy {seed}"] = [
            Task(f"darcy/darcy/{way.name}/{by}", functools.partial(fitted, way=way, by=by))
            for way, by in pairs
        ]
    tasks["darcy 0"].insert(0, Task("darcy/darcy/base", ready.base_records))
    return tasks


class _Prepared:
    """The base, and the simulations."""

    def __init__(self, effort: Effort):
        self.effort = effort

    def data(self, seed: int, number: int, values: Any, labels: bool) -> Data:
        """Fields in equal numbers for each value, with or without labels."""
        g = darcy.fields(jax.random.key(seed), number)
        each = -(-number // len(values))
        z = jnp.repeat(jnp.asarray(values), each)[:number]
        u = jax.lax.map(lambda gz: darcy.solve(*gz), (g, z)) if labels else jnp.zeros(len(g))
        return Data(u, g, z)

    @functools.cached_property
    def tests(self) -> dict[float, Data]:
        """Fields and solutions for all values."""
        values = (darcy.SOURCE, *darcy.TRAINED, *darcy.INSIDE, *darcy.OUTSIDE)
        return {z: self.data(1000, self.effort.test_fields, (z,), True) for z in values}

    @functools.cached_property
    def base(self) -> Any:
        """The operator that was trained on labels at the source."""
        file, effort = CACHE / "fno2d-darcy.eqx", self.effort
        operator = darcy.new_operator(jax.random.key(1))
        if effort.caches and file.exists():
            return eqx.tree_deserialise_leaves(file, operator)
        trainable, frozen = darcy.BASE.start(operator, None)
        steps = effort.operator_base_steps
        run = darcy.adam(darcy.BASE, "16 labels", frozen, steps, effort.every, BATCH)
        train = self.data(0, 2 * effort.fields, (darcy.SOURCE,), True)
        held_out = self.data(1, effort.test_fields, (darcy.SOURCE,), True)
        operator = eqx.combine(run(trainable, train, held_out, 3e-3)[0], frozen)
        if effort.caches:
            CACHE.mkdir(exist_ok=True)
            eqx.tree_serialise_leaves(file, operator)
        return operator

    def errors(self, way: OperatorWay, tree: Any) -> dict[str, float]:
        """The relative errors, by the value."""

        @eqx.filter_jit
        def error(tree: Any, data: Data) -> Any:
            u = jax.vmap(lambda g, z: way.predict(tree, g, z))(data.g, data.z)
            return jnp.mean(relative_errors(u, data.labels))

        errors = {f"{z:g}": float(error(tree, data)) for z, data in self.tests.items()}
        return {z: float(f"{value:.4g}") for z, value in errors.items()}

    def base_records(self, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
        named = _named("base", "labels at the source", 0)
        if tuple(named.values()) not in done:
            trained = size(eqx.filter(self.base, eqx.is_inexact_array))
            yield named | {"errors": self.errors(darcy.BASE, self.base), "trained": trained}

    def fitted(
        self, done: dict[Any, Any], way: OperatorWay, by: str, seed: int
    ) -> Iterator[dict[str, Any]]:
        """The records of a way at each rate."""
        effort, labels = self.effort, by == "16 labels"
        trainable, frozen = way.start(self.base, jax.random.key(10 + seed))
        run = darcy.adam(way, by, frozen, effort.operator_steps, effort.every, BATCH)
        number = LABELS if labels else effort.fields
        data = self.data(2000 + seed, number, way.values, labels)
        # A quarter of the fields of each value is held out.
        is_held_out = jnp.arange(number) % 4 == 3
        train = jax.tree.map(lambda x: x[~is_held_out], data)
        held_out = jax.tree.map(lambda x: x[is_held_out], data)

        programs: list[Any] = []

        def at_rate(rate: float, factor: float) -> dict[str, Any]:
            arguments = (trainable, train, held_out, jnp.asarray(rate))
            compiled = run.lower(*arguments).compile() if not programs else programs[0]
            programs[:] = [compiled]
            begin = time.process_time()
            trained, validation = jax.block_until_ready(compiled(*arguments))
            seconds = time.process_time() - begin
            return {
                "validation": float(validation),
                "errors": self.errors(way, eqx.combine(trained, frozen)),
                "seconds": round(seconds, 3),
                "trained": size(trained),
            }

        yield from searched(_named(way.name, by, seed), effort, done, (1.0,), at_rate)


def _named(way: str, by: str, seed: int) -> dict[str, Any]:
    return dict(zip(KEY, ("darcy", "darcy", way, by, seed, 0.0, 0.0, 0.0), strict=True))

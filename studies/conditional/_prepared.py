"""A pretrained model with its simulations, and the work on it that the runs record."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jno.lora import JnoLoraWarning, merge_lora, resolve
from jno_lora_conditional import fit

from .._families import Effort, pretrained, relative_errors
from ._fitting import Fitting, Given, Outcome, State
from ._methods import Method
from ._tasks import Samples, Task, pool, target, tests


class Prepared:
    """All that the runs on one task need, made when it is first needed."""

    def __init__(self, task: Task, effort: Effort):
        self.task, self.effort = task, effort
        self.model = pretrained(task.family, effort)
        self.tests = tests(task, effort.test)
        self.fitting = Fitting(task, effort)
        self.pool = functools.cache(self._pool)
        self.target = functools.cache(self._target)
        self.parts = functools.cache(self._parts)
        self.errors_of_sets: Any = eqx.filter_jit(self._errors_of_sets)
        self.fits: Any = eqx.filter_jit(self._fits)

    def train(self, method: Method, seed: int, samples: Samples, given: Given) -> Outcome:
        """One run, on the device."""
        arguments = (samples, self.tests, jax.random.key(seed), given.arrays())
        return jax.block_until_ready(self.fitting.run(*self.parts(method, seed), *arguments))

    def untouched(self) -> Float[Array, " values"]:
        """The error of the pretrained model at each value."""
        errors = eqx.filter_jit(self.fitting.errors)
        return jnp.stack(
            [jnp.mean(errors(State(self.model), t)) for t in zip(*self.tests, strict=True)]
        )

    def size(self) -> int:
        """The number of the model's parameters."""
        leaves = jax.tree.leaves(eqx.filter(self.model, eqx.is_inexact_array))
        return sum(leaf.size for leaf in leaves)

    def interpolated(self, sets: list[State], frozen: State) -> Float[Array, " values"]:
        """The error at each value, of the interpolation of adapters from the training values."""
        weights = jnp.asarray([hats(self.task, value) for value in self.task.values])
        return self.errors_of_sets(sets, frozen, weights, self.tests)

    def fitted(self, state: State, value: float, seed: int, used: int) -> tuple[Array, Array]:
        """`(z, error)` of fits of the parameter alone, each to `used` simulations at `value`."""
        fields, solutions, _ = self.target(value, seed)
        index = jnp.arange(len(fields)).reshape(-1, 4)  # groups of four simulations
        index = jnp.concatenate([index, jnp.roll(index, 2, axis=1)])
        weights = (jnp.arange(4) < used) / used
        place = self.task.values.index(value)
        test = tuple(part[place] for part in self.tests[:2])
        return self.fits(state.core, (fields[index], solutions[index]), weights, test)

    def _errors_of_sets(
        self, sets: list[State], frozen: State, weights: Array, tests: Samples
    ) -> Array:
        plain = [merge_lora(eqx.combine(one_set, frozen).core) for one_set in sets]

        def combined(weight: Array) -> Any:
            def leaf(start: Any, *ends: Any) -> Any:
                if not eqx.is_inexact_array(start):
                    return start
                return start + jnp.tensordot(weight, jnp.stack(ends) - start[None], axes=1)

            return jax.tree.map(leaf, self.model, *plain)

        def error(given: Any) -> Array:
            weight, test = given
            return jnp.mean(self.fitting.errors(State(combined(weight)), test))

        return jax.lax.map(error, (weights, tests))

    def _fits(self, conditional: Any, data: Any, weights: Array, test: Any) -> tuple[Array, Array]:
        task, apply = self.task, self.task.family.apply
        ends = (task.source, task.outside[-1] + 0.2 * (task.outside[-1] - task.source))
        grid = jnp.geomspace(*ends, 17) if task.log else jnp.linspace(*ends, 17)

        def errors(model: Any, fields: Array, solutions: Array) -> Array:
            return relative_errors(apply(resolve(model), fields), solutions)

        def query(data: Any) -> tuple[Array, Array]:
            def loss(model: Any) -> Array:
                return jnp.sum(weights * errors(model, *data) ** 2)

            z = fit(conditional, loss, grid, steps=8).z
            state = State(conditional)
            return z, jnp.mean(self.fitting.errors(state, (*test, z)))

        return jax.lax.map(query, data)

    def twice(self, value: float, seed: int) -> Samples:
        """Samples at one value, in the form of a pool with samples of the source behind."""
        return _joined(self.target(value, seed), self.target(value, seed))

    def _pool(self, seed: int, more: bool) -> Samples:
        values = self.task.more if more else self.task.training
        samples = pool(self.task, seed, values, self.effort.pool)
        return _joined(samples, self.target(self.task.source, seed))

    def _target(self, value: float, seed: int) -> Samples:
        return target(self.task, value, seed, self.effort.pool)

    def _parts(self, method: Method, seed: int) -> tuple[State, State]:
        with warnings.catch_warnings():  # small layers clamp the rank
            warnings.simplefilter("ignore", JnoLoraWarning)
            return method.partition(self.task, self.model, seed)


def hats(task: Task, value: float) -> list[float]:
    """The weights of the training values: hat functions between the source and the values.

    Beyond the last value, the line through the last two values goes on.
    """
    knots = sorted((task.source, *task.training), key=lambda knot: abs(knot - task.source))
    u = [abs(_u(task, knot)) for knot in knots]
    at = abs(_u(task, value))
    high = min(int(np.searchsorted(u, at)), len(u) - 1) or 1
    fraction = (at - u[high - 1]) / (u[high] - u[high - 1])
    weights = dict.fromkeys(knots, 0.0) | {knots[high - 1]: 1 - fraction, knots[high]: fraction}
    return [weights[knot] for knot in task.training]


def _u(task: Task, value: float) -> float:
    return float(np.log(value / task.source)) if task.log else value - task.source


def _joined(samples: Samples, at_source: Samples) -> Samples:
    fields, solutions, values = map(jnp.concatenate, zip(samples, at_source, strict=True))
    return fields, solutions, values

"""One training run over a range of values as one compiled program, early stopping included."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import resolve
from jno_lora_conditional import Conditional, at, merge
from jno_lora_train import penalty

from .._families import Effort, relative_errors, shifted
from .._training import fine_tune
from ._tasks import Samples, Task


class State(eqx.Module):
    """A model that may depend on the parameter: by its adapters, by FiLM, by an input channel."""

    core: Any  # a model, or a `Conditional`
    modulation: Any = None  # a `Film` or a `Channel`

    def at(self, z: Any) -> Any:
        """The plain model at `z`."""
        model = self.core
        if isinstance(model, Conditional):
            model = at(model, z) if self.modulation is None else merge(model, z)
        return model if self.modulation is None else self.modulation(model, z)

    def rates(self, rate: Any, ratio: Any) -> "State":
        """The learning rate of each array; the modulation's is `ratio` times as large."""
        core = jax.tree.map(lambda _: rate, self.core)
        return State(core, jax.tree.map(lambda _: rate * ratio, self.modulation))


class Given(NamedTuple):
    """The numbers of a run: arguments of the program, which is compiled once.

    - `samples`: how many of the pool are used.
    - `values`: how many values of the parameter take turns in the pool.
    - `replay`: whether samples of the source are mixed in.
    """

    samples: Any
    rate: Any
    ratio: Any = 1.0
    values: Any = 4
    replay: Any = False

    def arrays(self) -> "Given":
        """As arrays, so that other numbers compile nothing again."""
        return Given(*map(jnp.asarray, self))


class Outcome(NamedTuple):
    """The best arrays, their relative errors, their step, and the number of steps."""

    trainable: Any
    validation: Array
    errors: Float[Array, " values"]  # the mean error at each value of the tests
    best_step: Array
    steps: Array


class Fitting:
    """Training on one task.

    The first quarter of the samples, at least one, is for validation, at evenly spread shifts where
    the equation allows shifts. The training samples are drawn with replacement. A batch is made of
    groups; the samples of a group have one value of the parameter, so that a model is built for
    each group and not for each sample.
    """

    GROUPS = 4
    VALIDATED = (8, 2)  # groups, samples of each

    def __init__(self, task: Task, effort: Effort):
        self.task = task
        self.effort = effort
        self.run: Any = eqx.filter_jit(self._run)

    def batch(self, pool: Samples, key: Array, given: Given, step: Any) -> Samples:
        """The training batch of a step, at random shifts.

        The pool holds samples of the source behind the `effort.pool` samples of the task. With
        `given.replay`, one group comes from there.
        """
        groups, each = self.GROUPS, self.effort.batch // self.GROUPS
        keys = jax.random.split(jax.random.fold_in(key, step), 4)
        first = _validated(given.samples)
        value = jax.random.randint(keys[0], (groups, 1), first, given.samples) % given.values
        begin = first + (value - first) % given.values
        turns = (given.samples - 1 - begin) // given.values + 1
        index = begin + given.values * jax.random.randint(keys[1], (groups, each), 0, turns)
        size = self.effort.pool
        at_source = size + jax.random.randint(keys[2], (groups, each), 0, size)
        is_replayed = given.replay & (jnp.arange(groups)[:, None] == 0)
        shape = (groups, each, len(self.task.axes))
        shifts = jax.random.randint(keys[3], shape, 0, pool[0].shape[1])
        return self._take(pool, jnp.where(is_replayed, at_source, index), shifts)

    def validation(self, pool: Samples, samples: Any) -> Samples:
        """The samples for validation. Each group is a sample at several shifts."""
        number, index = _validated(samples), jnp.arange(math.prod(self.VALIDATED))
        groups, each = self.VALIDATED
        shifts = jnp.broadcast_to(
            (index * pool[0].shape[1] // len(index)).reshape(each, groups).T[..., None],
            (groups, each, len(self.task.axes)),
        )
        positions = jnp.broadcast_to(jnp.arange(groups)[:, None] % number, (groups, each))
        return self._take(pool, positions, shifts)

    def _take(self, pool: Samples, index: Array, shifts: Array) -> Samples:
        def taken(index: Array, shifts: Array) -> Samples:
            fields, solutions = (shifted(u[index], shifts, self.task.axes) for u in pool[:2])
            return fields, solutions, pool[2][index[0]]

        return jax.vmap(taken)(index, shifts)

    def errors(self, state: State, group: Samples) -> Float[Array, " number"]:
        """The relative errors of samples with one value of the parameter."""
        fields, solutions, z = group
        return relative_errors(self.task.family.apply(resolve(state.at(z)), fields), solutions)

    def _run(
        self,
        trainable: State,
        frozen: State,
        pool: Samples,
        tests: Samples,
        key: Array,
        given: Given,
    ) -> Outcome:
        held_out = self.validation(pool, given.samples)

        def mean(state: State, groups: Samples) -> Float[Array, ""]:
            return jnp.mean(jax.vmap(lambda group: self.errors(state, group))(groups))

        def loss(trainable: State, step: Array) -> Array:
            state = eqx.combine(trainable, frozen)
            batch = self.batch(pool, key, given, step)
            adapted = state.core.model if isinstance(state.core, Conditional) else state.core
            return mean(state, batch) + 0.1 * penalty(adapted)

        def error(trainable: State) -> Array:
            return mean(eqx.combine(trainable, frozen), held_out)

        rates = trainable.rates(given.rate, given.ratio)
        best = fine_tune(trainable, loss, error, rates, self.effort)
        state = eqx.combine(best.trainable, frozen)
        errors = jax.lax.map(lambda test: jnp.mean(self.errors(state, test)), tests)
        return Outcome(best.trainable, best.validation, errors, best.best_step, best.steps)


def _validated(samples: Any) -> Array:
    return jnp.maximum(1, samples // 4)

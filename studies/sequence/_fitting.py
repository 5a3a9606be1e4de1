"""Training on one task of the sequence as one compiled program, early stopping included."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import resolve
from jno_lora_train import retain
from jno_lora_train.optim import Subspaces, stay_orthogonal

from .._families import Effort, relative_errors, shifted
from .._training import fine_tune
from ._problem import Data, Operator

Batch = tuple[Array, Array, Array]  # initial fields, solutions, how the model is told the setting


class Given(NamedTuple):
    """The numbers of a run: arguments of the program, which compiles once.

    - `task`: the index of the setting to learn.
    - `weight`: the factor of what holds earlier settings.
    - `replay`: whether half of each batch is stored samples of earlier settings.
    """

    task: Any
    rate: Any
    weight: Any = 0.0
    replay: Any = False

    def arrays(self) -> "Given":
        """As arrays, so that other numbers compile nothing again."""
        return Given(*map(jnp.asarray, self))


class Held(NamedTuple):
    """EWC's penalty, `sum(fisher * (weights - centre)^2)`: arrays in the model's structure."""

    fisher: Any
    centre: Any


class Holds(NamedTuple):
    """What holds the earlier settings; `None` for what is not used.

    - `ewc`: its penalty.
    - `base`: the model that `retain` stays near.
    - `closed`: directions that the factors never enter: `stay_orthogonal`.
    - `drawn`: directions for CLoRA's penalty.
    """

    ewc: Held | None = None
    base: Any = None
    closed: Subspaces | None = None
    drawn: Subspaces | None = None


class Outcome(NamedTuple):
    """The best arrays, and their errors on the tests and the validation samples of all settings."""

    trainable: Any
    errors: Float[Array, " settings"]
    validations: Float[Array, " settings"]
    best_step: Array
    steps: Array


class Fitting:
    """Training on one task. The first quarter of its samples decides when to stop."""

    VALIDATED = 32

    def __init__(self, effort: Effort, operator: Operator):
        self.effort, self.operator = effort, operator
        self.run: Any = eqx.filter_jit(self._run)

    @property
    def held_out(self) -> int:
        """How many samples of each setting are for validation."""
        return max(1, self.effort.pool // 4)

    def batch(self, data: Data, key: Array, given: Given, step: Any) -> Batch:
        """Training samples at random shifts."""
        return self._drawn(data, key, step, self._settings(key, given, step))

    def _settings(self, key: Array, given: Given, step: Any) -> Array:
        """The setting of each sample of a batch: with `replay`, half come from earlier settings."""
        size = self.effort.batch
        earlier = self._earlier(key, given, step)
        is_replayed = given.replay & (jnp.arange(size) < size // 2)
        return jnp.where(is_replayed, earlier, given.task)

    def _earlier(self, key: Array, given: Given, step: Any) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, step), 1)
        return jax.random.randint(key, (self.effort.batch,), 0, given.task)

    def _drawn(self, data: Data, key: Array, step: Any, settings: Array) -> Batch:
        sample_key, shift_key = jax.random.split(jax.random.fold_in(key, step))
        shape = settings.shape
        samples = jax.random.randint(sample_key, shape, self.held_out, self.effort.pool)
        shifts = jax.random.randint(shift_key, (*shape, 1), 0, data.pool[0].shape[-1])
        return self._taken(data, settings, samples, shifts)

    def _taken(self, data: Data, settings: Array, samples: Array, shifts: Array) -> Batch:
        fields, solutions = (shifted(u[settings, samples], shifts, (1,)) for u in data.pool)
        return fields, solutions, data.z[settings]

    def validation(self, data: Data, setting: Any) -> Batch:
        """The validation samples of a setting, at evenly spread shifts."""
        index = jnp.arange(self.VALIDATED)
        shifts = index // self.held_out * self.held_out * data.pool[0].shape[-1] // self.VALIDATED
        settings = jnp.broadcast_to(setting, index.shape)
        return self._taken(data, settings, index % self.held_out, shifts[:, None])

    def error(self, model: Any, batch: Batch) -> Float[Array, ""]:
        """The mean relative error of a batch."""
        fields, solutions, z = batch
        predicted = self.operator.predict(resolve(model), fields, z)
        return jnp.mean(relative_errors(predicted, solutions))

    def errors_on(self, model: Any, data: Data) -> tuple[Array, Array]:
        """The mean errors on the tests and the validation samples of each setting."""

        def on(setting: Array) -> tuple[Array, Array]:
            fields, solutions = (u[setting] for u in data.test)
            test = fields, solutions, jnp.broadcast_to(data.z[setting], len(fields))
            return self.error(model, test), self.error(model, self.validation(data, setting))

        return jax.lax.map(on, jnp.arange(len(data.z)))

    def _run(
        self,
        trainable: Any,
        frozen: Any,
        data: Data,
        key: Array,
        given: Given,
        holds: Holds,
    ) -> Outcome:
        held_out = self.validation(data, given.task)

        def loss(trainable: Any, step: Array) -> Array:
            model = eqx.combine(trainable, frozen)
            total = self.error(model, self.batch(data, key, given, step))
            if holds.ewc is not None:
                total = total + given.weight * distance(holds.ewc, trainable)
            if holds.drawn is not None:
                total = total + given.weight * holds.drawn.penalty(model)
            if holds.base is not None:
                fields, _, z = self._drawn(data, key, step, self._earlier(key, given, step))
                total = total + retain(
                    model,
                    (fields, z),
                    given.weight,
                    call=lambda model, inputs: self.operator.predict(model, *inputs),
                    base=holds.base,
                )
            return total

        best = fine_tune(
            trainable,
            loss,
            lambda trainable: self.error(eqx.combine(trainable, frozen), held_out),
            jax.tree.map(lambda _: given.rate, trainable),
            self.effort,
            None if holds.closed is None else stay_orthogonal(holds.closed),
        )
        errors, validations = self.errors_on(eqx.combine(best.trainable, frozen), data)
        return Outcome(best.trainable, errors, validations, best.best_step, best.steps)


def distance(held: Held, weights: Any) -> Float[Array, ""]:
    """EWC's penalty, without its factor."""
    terms = jax.tree.map(
        lambda fisher, centre, x: jnp.sum(fisher * (x - centre) ** 2), *held, weights
    )
    return sum(jax.tree.leaves(terms), start=jnp.zeros(()))


def fisher(fitting: Fitting, model: Any, data: Data, setting: Any, key: Array) -> Any:
    """The diagonal of the Fisher matrix of a setting, for outputs with Gaussian errors.

    The outputs of a sample have the standard deviation of the norm of its solution, so that
    `sum(fisher * change^2)` is the mean square of the relative change of the outputs. `E[J^T J]` is
    the mean of squared gradients by outputs in random directions.
    """
    draws = 4
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    samples = jnp.arange(fitting.held_out, fitting.effort.pool)
    fields, solutions = (u[setting, samples] for u in data.pool)

    def squared(index: Array) -> Any:
        position = index // draws
        field, norm = fields[position][None], jnp.linalg.norm(solutions[position])
        direction = jax.random.normal(jax.random.fold_in(key, index), field.shape)

        def along(arrays: Any) -> Array:
            model = eqx.combine(arrays, static)
            outputs = fitting.operator.predict(model, field, data.z[setting][None])
            return jnp.sum(direction * outputs) / norm

        return jax.tree.map(jnp.square, jax.grad(along)(arrays))

    return jax.tree.map(
        lambda x: jnp.mean(x, axis=0), jax.lax.map(squared, jnp.arange(draws * len(samples)))
    )

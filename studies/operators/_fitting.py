"""One fine-tuning run as one compiled program, early stopping included.

The pool of samples has a fixed size. The number of samples, the seed and the learning rate are
arguments of the program, so each method compiles once for each problem.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import resolve
from jno_lora_train import penalty, retain

from .._families import Effort, relative_errors, shifted
from .._training import Best, fine_tune
from ._problems import Problem

Fields = tuple[Array, Array]  # initial fields, and solutions


class Outcome(NamedTuple):
    """The relative errors of the best parameters, their step, and the number of steps.

    - `source`: the error in the setting of the pretraining.
    """

    validation: Array
    test: Array
    source: Array
    best_step: Array
    steps: Array


class Replay(NamedTuple):
    """`retain` on stored fields of the source.

    - `base`: the pretrained model.
    """

    fields: Array
    base: Any
    weight: Any


class Fitting:
    """Fine-tuning on one problem.

    A quarter of the samples, at least one, is for validation: `VALIDATED` fields in all, shifted
    where the equation allows shifts. The training samples are drawn with replacement.
    """

    VALIDATED = 32

    def __init__(self, problem: Problem, effort: Effort):
        self.problem = problem
        self.effort = effort
        self.run: Any = eqx.filter_jit(self._run)

    def loss(self, model: Any, batch: Fields) -> Float[Array, ""]:
        """The mean relative error, and AdaLoRA's penalty if the model has its adapters."""
        return jnp.mean(self._errors(model, batch)) + 0.1 * penalty(model)

    def batch(self, pool: Fields, key: Array, samples: Any, step: Any) -> Fields:
        """The training batch of a step: samples of the training split at random shifts."""
        order, held_out = self._split(key, samples)
        size, axes = self.effort.batch, self.problem.axes
        index_key, shift_key = jax.random.split(jax.random.fold_in(key, step))
        positions = held_out + jax.random.randint(index_key, (size,), 0, samples - held_out)
        shifts = jax.random.randint(shift_key, (size, len(axes)), 0, pool[0].shape[1])
        return self._take(pool, order[positions], shifts)

    def replayed(self, fields: Array, key: Array, step: Any) -> Array:
        """Stored fields of the source at random shifts: every source setting allows all shifts."""
        size, axes = self.effort.batch, tuple(range(1, fields.ndim))
        key = jax.random.fold_in(jax.random.fold_in(key, step), 1)
        index_key, shift_key = jax.random.split(key)
        indices = jax.random.randint(index_key, (size,), 0, len(fields))
        shifts = jax.random.randint(shift_key, (size, len(axes)), 0, fields.shape[1])
        return shifted(fields[indices], shifts, axes)

    def validation(self, pool: Fields, key: Array, samples: Any) -> Fields:
        """The fields of the validation split, at evenly spread shifts."""
        order, held_out = self._split(key, samples)
        index = jnp.arange(self.VALIDATED)
        shifts = index // held_out * held_out * pool[0].shape[1] // self.VALIDATED
        shifts = jnp.broadcast_to(shifts[:, None], (self.VALIDATED, len(self.problem.axes)))
        return self._take(pool, order[index % held_out], shifts)

    def _split(self, key: Array, samples: Any) -> tuple[Array, Array]:
        """A random order of the pool, and how many of its first `samples` are for validation."""
        return jax.random.permutation(key, self.effort.pool), jnp.maximum(1, samples // 4)

    def _take(self, pool: Fields, indices: Array, shifts: Array) -> Fields:
        fields, solutions = (shifted(u[indices], shifts, self.problem.axes) for u in pool)
        return fields, solutions

    def error(self, model: Any, batch: Fields) -> Float[Array, ""]:
        """The mean relative error."""
        return jnp.mean(self._errors(model, batch))

    def tuned(
        self,
        trainable: Any,
        frozen: Any,
        pool: Fields,
        replay: Replay | None,
        key: Array,
        samples: Any,
        rate: Any,
    ) -> Best:
        """The parameters with the lowest validation error."""
        held_out = self.validation(pool, key, samples)

        def loss(trainable: Any, step: Array) -> Array:
            batch = self.batch(pool, key, samples, step)
            model = eqx.combine(trainable, frozen)
            total = self.loss(model, batch)
            if replay is None:
                return total
            fields = self.replayed(replay.fields, key, step)
            apply = self.problem.family.apply
            return total + retain(model, fields, replay.weight, call=apply, base=replay.base)

        return fine_tune(
            trainable,
            loss,
            lambda trainable: self.error(eqx.combine(trainable, frozen), held_out),
            jax.tree.map(lambda _: rate, trainable),
            self.effort,
        )

    def _errors(self, model: Any, batch: Fields) -> Float[Array, " batch"]:
        fields, solutions = batch
        return relative_errors(self.problem.family.apply(resolve(model), fields), solutions)

    def _run(
        self,
        trainable: Any,
        frozen: Any,
        pool: Fields,
        tests: tuple[Fields, Fields],
        replay: Replay | None,
        key: Array,
        samples: Any,
        rate: Any,
    ) -> Outcome:
        best = self.tuned(trainable, frozen, pool, replay, key, samples, rate)
        # One program for both: most of a run's time is compiling.
        stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *tests)
        test, source = jax.lax.map(
            lambda fields: self.error(eqx.combine(best.trainable, frozen), fields), stacked
        )
        return Outcome(best.validation, test, source, best.best_step, best.steps)

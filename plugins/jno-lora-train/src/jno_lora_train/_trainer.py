"""Train the trainable part of a model with one compiled step, and time the step."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import SelectionError, resolve

from ._training_run import TrainingRun


class Fit(NamedTuple):
    """The trained part of a model, with the loss before each step and the seconds of each step."""

    trainable: PyTree
    losses: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def milliseconds(self) -> float | None:
        """The median time of a step, without the first; `None` after a single step."""
        return 1000 * statistics.median(self.seconds[1:]) if len(self.seconds) > 1 else None


class ConjugateState(NamedTuple):
    """The empty state of `conjugate`, by which `Trainer` detects a second conjugation."""


class Cost(NamedTuple):
    """The time to compile a step, and its temporary memory (`None` if JAX does not report it)."""

    compile_seconds: float
    temp_bytes: int | None


class Trainer:
    """The steps of a training loop, each compiled for the arguments of its first call.

    `fit` is the plain loop. In a loop of your own, call `step`, and `evaluate` now and then:

    ```python
    run = trainer.start(trainable)
    while run.step < 1000 and run.waited < 3:
        run, loss = trainer.step(run, frozen, batches[run.step])
        if run.step % 50 == 0:
            model = eqx.combine(run.trainable, frozen)
            run = run.evaluated(trainer.evaluate(model, held_out))
            run.save(path)  # `trainer.start(trainable).load(path)` goes on from there
    net.update(run.best)
    ```

    **Arguments:**

    - `loss`: `loss(model, batch)` returns a scalar. The model is resolved (`jno.lora.resolve`).
    - `optimizer`: an optax optimiser, or any object with its `init` and `update`. It gets the
        direction of ascent, also for complex arrays, for which JAX's gradient is the conjugate, so
        it must not conjugate the gradients itself.

    **Raises:** `start`, `fit` and `compile` raise `SelectionError` if nothing trains; the first
    step raises `ValueError` if complex arrays train and `optimizer` contains
    `jno_lora_train.optim.conjugate()`.
    """

    def __init__(self, loss: Callable[[PyTree, PyTree], Array], optimizer: Any):
        self.optimizer = optimizer

        def step(trainable: PyTree, frozen: PyTree, state: PyTree, batch: PyTree) -> PyTree:
            # Differentiate only the trainable part: frozen arrays get no gradient, not even zeros.
            value, gradient = eqx.filter_value_and_grad(
                lambda trainable: loss(resolve(eqx.combine(trainable, frozen)), batch)
            )(trainable)
            # Optax raises a float to an integer power; the model itself needs no promotion.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(_ascent(gradient, state), state, trainable)
                moved = eqx.apply_updates(trainable, updates)
            moved = jax.tree.map(lambda x, old: x.astype(old.dtype), moved, trainable)
            # Flat, because `filter_jit` joins the trees that it returns leaf by leaf in Python: a
            # fifth of the step of a small model.
            return *jax.tree.flatten((moved, state)), value

        self._step: Any = eqx.filter_jit(step)
        self._loss = eqx.filter_jit(lambda model, batch: loss(resolve(model), batch))

    def start(self, trainable: PyTree) -> TrainingRun:
        """A new run, before its first step, for the trainable part of a model."""
        trainable = _to_train(trainable)
        return TrainingRun(trainable, self.optimizer.init(trainable), step=0, best=trainable)

    def step(self, run: TrainingRun, frozen: PyTree, batch: PyTree) -> tuple[TrainingRun, Array]:
        """Train on one batch. Returns the new run, and the batch's loss before the update."""
        batch = _on_the_device(batch)
        leaves, structure, loss = self._step(run.trainable, frozen, run.state, batch)
        trainable, state = jax.tree.unflatten(structure, leaves)
        # Until the first evaluation, the newest arrays count as the best.
        best = trainable if math.isinf(run.best_loss) else run.best
        return replace(run, trainable=trainable, state=state, step=run.step + 1, best=best), loss

    def evaluate(self, model: PyTree, batches: Iterable[PyTree]) -> float:
        """The mean loss over `batches`, without training.

        **Raises:** `ValueError` if there are no batches.
        """
        losses = [self._loss(model, _on_the_device(batch)) for batch in batches]
        return statistics.fmean(map(float, losses))

    def compile(self, trainable: PyTree, frozen: PyTree, batch: PyTree) -> Cost:
        """Compile the step ahead of `fit`, and measure its cost."""
        trainable = _to_train(trainable)
        state = self.optimizer.init(trainable)
        args = jax.block_until_ready(_on_the_device((trainable, frozen, state, batch)))
        begin = time.perf_counter()
        compiled = self._step.lower(*args).compile()
        seconds = time.perf_counter() - begin
        memory = compiled.compiled.memory_analysis()
        return Cost(seconds, None if memory is None else int(memory.temp_size_in_bytes))

    def fit(
        self,
        trainable: PyTree,
        frozen: PyTree,
        batches: Iterable[PyTree],
        *,
        state: PyTree | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Fit:
        """Train once on each batch, from `state` or from a fresh state of the optimiser."""
        trainable, frozen = _to_train(trainable), _on_the_device(frozen)
        state = self.optimizer.init(trainable) if state is None else state
        losses, seconds = list[Array](), list[float]()
        for batch in batches:
            # Move the batch before the clock starts, so that only the step is timed.
            batch = jax.block_until_ready(_on_the_device(batch))
            begin = time.perf_counter()
            results = self._step(trainable, frozen, state, batch)
            leaves, structure, loss = jax.block_until_ready(results)
            trainable, state = jax.tree.unflatten(structure, leaves)
            seconds.append(time.perf_counter() - begin)
            losses.append(loss)
            on_step()
        return Fit(trainable, tuple(map(float, losses)), tuple(seconds))


def _ascent(gradient: PyTree, state: PyTree) -> PyTree:
    """The direction of ascent, which is the conjugate of JAX's gradient for a complex array.

    **Raises:** `ValueError` if the optimiser with this `state` conjugates as well.
    """
    is_complex = any(map(jnp.iscomplexobj, jax.tree.leaves(gradient)))
    if is_complex and any(map(_is_conjugate, jax.tree.leaves(state, is_leaf=_is_conjugate))):
        raise ValueError(
            "`optimizer` holds conjugate(), but the gradients of complex arrays "
            "are conjugated here already, and two conjugations cancel. Leave conjugate() out."
        )
    return jax.tree.map(jnp.conj, gradient)


def _is_conjugate(node: object) -> bool:
    return isinstance(node, ConjugateState)


def _on_the_device(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)


def _to_train(trainable: PyTree) -> PyTree:
    """The arrays as a step returns them: with a weak type, the second step would compile again."""
    if not jax.tree.leaves(trainable):
        raise SelectionError(
            "Nothing trains: the trainable part has no array. net.train_adapters() trains the "
            "adapters of a net, and net.activate(name) first puts named ones into its model."
        )
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), trainable)

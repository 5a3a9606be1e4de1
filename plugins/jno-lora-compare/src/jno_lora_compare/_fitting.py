"""Train one candidate at each learning rate, and keep the best trial."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import Net, resolve
from jno.lora.extending import imported_for
from jno_lora_train import Trainer

from ._checks import Loss
from ._row import ComparisonRow


class Task(NamedTuple):
    """What every candidate is trained on: data, steps, optimiser and learning rates."""

    loss: Loss
    batches: list[PyTree]
    steps: int
    optimizer: Any
    rates: tuple[float, ...]  # empty if the optimiser brings its learning rate
    score: Callable[[PyTree], Any] | None
    kept_error: Callable[[PyTree], float] | None

    def train(self, name: str, net: Net, on_step: Callable[[], None]) -> ComparisonRow:
        """Train the trainable part of `net` at each rate, and return the best trial as a row."""
        trained, held = eqx.partition(net.module, net.trainable)  # warns of nothing
        trains = bool(jax.tree.leaves(trained))
        # A trainer refuses to train nothing, so that such a model has a number beside it.
        trainable, frozen = (trained, None if trains else jnp.zeros(())), (held, None)
        trainer = Trainer(lambda model, batch: self.loss(model[0], batch), self.optimizer)
        cost = trainer.compile(trainable, frozen, self.batches[0])

        def trial(rate: float | None) -> tuple[tuple[float, ...], ComparisonRow]:
            state = trainer.optimizer.init(trainable)
            if rate is not None:
                state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
            batches = itertools.islice(itertools.cycle(self.batches), self.steps)
            fit = trainer.fit(trainable, frozen, batches, state=state, on_step=on_step)
            means = running_means(fit.losses, max(1, self.steps // 10))
            model = eqx.combine(fit.trainable[0], held)
            score = () if self.score is None else self.score(resolve(model))
            scores = tuple(map(float, score if isinstance(score, tuple) else (score,)))
            row = ComparisonRow(
                name=name,
                trainable=parameter_count(trained),
                learning_rate=rate if trains else None,
                kept_error=None if self.kept_error is None else self.kept_error(resolve(model)),
                score=scores[0] if scores else None,
                final_loss=means[-1],
                best_loss=min(means, key=lambda mean: math.inf if math.isnan(mean) else mean),
                milliseconds=fit.milliseconds,
                **cost._asdict(),
                losses=fit.losses,
                model=model,
            )
            return _order(scores or (-means[-1],)), row

        # A candidate that trains nothing gives the same result at every rate.
        rates = self.rates if trains else self.rates[:1]
        _, best_row = max(map(trial, rates or (None,)), key=lambda trial: trial[0])
        return best_row


def _order(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """A sort key, largest for the best trial. NaN is worse than any number."""
    return tuple(-math.inf if math.isnan(x) else x for x in numbers)


def running_means(losses: Sequence[float], window: int) -> list[float]:
    """The mean of each `window` consecutive losses."""
    return [math.fsum(losses[i : i + window]) / window for i in range(len(losses) - window + 1)]


def adam() -> Any:
    """Adam with the learning rate in its state, so that one compiled step serves all rates."""
    with imported_for("compare", "compare", "optax"):
        import optax
    # The remaining numbers stay Python floats: in half precision, a decay of 0.999 would be 1.
    fixed = ("b1", "b2", "eps", "eps_root")
    adam = optax.inject_hyperparams(optax.adam, static_args=fixed, hyperparam_dtype=jnp.float32)
    return adam(learning_rate=0.0)


def parameter_count(tree: PyTree) -> int:
    # A complex number counts as two parameters.
    return sum(leaf.size * (1 + jnp.iscomplexobj(leaf)) for leaf in jax.tree.leaves(tree))

"""Training on the digits, for whatever part of a model trains."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._comparing import Fit, Trainer
from ._data import Scans

BATCH = 50


def _loss(model: PyTree, batch: tuple[Array, Array]) -> Float[Array, ""]:
    images, labels = batch
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# The learning rate is part of the optimiser's state, so that all rates share one program.
_TRAINER = Trainer(_loss, optax.inject_hyperparams(optax.adam)(learning_rate=0.0))


def fit(
    trainable: PyTree,
    frozen: PyTree,
    scans: Scans,
    *,
    rate: float,
    epochs: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Fit:
    """Train on whole batches of `BATCH` scans, in an order that depends on `seed` alone."""
    state = _TRAINER.optimizer.init(trainable)
    state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[tuple[Array, Array]]:
        for _ in range(epochs):
            order = rng.permutation(len(scans))
            whole = len(scans) - len(scans) % BATCH
            for chosen in order[:whole].reshape(-1, BATCH):
                yield scans.images[chosen], scans.labels[chosen]
            on_epoch()

    return _TRAINER.fit(trainable, frozen, batches(), state=state)

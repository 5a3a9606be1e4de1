"""Training on the digits."""

from collections.abc import Iterator

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ._data import Scans

BATCH = 50


def loss(model: PyTree, batch: tuple[Array, Array]) -> Float[Array, ""]:
    """The mean cross-entropy of a batch."""
    images, labels = batch
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches_of(scans: Scans, *, epochs: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Whole batches of `BATCH` scans, in an order that depends on `seed` alone."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(scans))
        whole = len(scans) - len(scans) % BATCH
        for chosen in order[:whole].reshape(-1, BATCH):
            yield scans.images[chosen], scans.labels[chosen]

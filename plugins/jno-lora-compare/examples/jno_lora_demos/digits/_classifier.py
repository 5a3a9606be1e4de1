"""The demo's model, its training, and its accuracy on each group of scans."""

from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._data import Digits, Scans

BATCH = 50


class Classifier(eqx.Module):
    """Two convolutions with pooling between them, then two linear layers: 85,066 parameters."""

    edges: eqx.nn.Conv2d
    shapes: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.edges = eqx.nn.Conv2d(1, 32, kernel_size=3, padding=1, key=keys[0])
        self.shapes = eqx.nn.Conv2d(32, 64, kernel_size=3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(kernel_size=2, stride=2)
        self.hidden = eqx.nn.Linear(64 * 4 * 4, 64, key=keys[2])
        self.output = eqx.nn.Linear(64, 10, key=keys[3])

    def __call__(self, image: Float[Array, "1 8 8"]) -> Float[Array, "10"]:
        """The logits of the ten digits, for one scan."""
        # Pool before the larger convolution, which would otherwise take most of the time.
        edges = self.pool(jax.nn.relu(self.edges(image)))
        shapes = jax.nn.relu(self.shapes(edges))
        return self.output(jax.nn.relu(self.hidden(shapes.reshape(-1))))


def loss(model: PyTree, batch: tuple[Array, Array]) -> Float[Array, ""]:
    """The mean cross-entropy of a batch."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()


def batches_of(scans: Scans, *, epochs: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Full batches of `BATCH` scans, in an order that depends only on `seed`."""
    rng = np.random.default_rng(seed)
    used = len(scans) - len(scans) % BATCH
    for _ in range(epochs):
        for indices in rng.permutation(len(scans))[:used].reshape(-1, BATCH):
            yield scans.images[indices], scans.labels[indices]


class Score(NamedTuple):
    """Accuracies, and a mean cross-entropy. Only the validation scans choose between models."""

    validation: float
    validation_loss: float
    target: float
    source: float

    @property
    def order(self) -> tuple[float, float]:
        """A sort key: the accuracy, and then the loss, because 150 scans often tie."""
        return self.validation, -self.validation_loss


def measure(model: PyTree, digits: Digits) -> Score:
    groups = (digits.validation, digits.test_target, digits.test_source)
    # One call for all groups, so that each class of model is compiled once.
    all_logits = logits_of(model, jnp.concatenate([scans.images for scans in groups]))
    logits = jnp.split(all_logits, np.cumsum([len(scans) for scans in groups])[:-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits[0], digits.validation.labels)
    validation, target, source = (
        float((group_logits.argmax(axis=-1) == scans.labels).mean())
        for group_logits, scans in zip(logits, groups, strict=True)
    )
    return Score(validation, float(loss.mean()), target, source)


@eqx.filter_jit
def logits_of(model: PyTree, images: Float[Array, "scans 1 8 8"]) -> Float[Array, "scans 10"]:
    return jax.vmap(model)(images)

"""One compiled training step, for whatever part of a model trains."""

import dataclasses
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ._data import Scans

BATCH = 50

# The learning rate is an argument of the step, so that all rates share one compilation.
_ADAM = optax.scale_by_adam()


@eqx.filter_jit
def _step(
    trainable: PyTree,
    frozen: PyTree,
    state: PyTree,
    rate: Float[Array, ""],
    images: Float[Array, "batch 1 8 8"],
    labels: Int[Array, " batch"],
) -> tuple[PyTree, PyTree]:
    def loss(trainable: PyTree) -> Float[Array, ""]:
        logits = jax.vmap(eqx.combine(trainable, frozen))(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # Only what trains is differentiated: the frozen part gets no gradient, not even of zeros.
    gradient = jax.grad(loss)(trainable)
    # Optax raises a float to the power of an integer; the model itself needs no promotion.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = _ADAM.update(gradient, state)
    return jax.tree.map(lambda p, u: p - rate * u, trainable, updates), state


@dataclasses.dataclass(frozen=True)
class Fit:
    """The trained part of a model, and how long each step took but the first, which compiles."""

    trainable: PyTree
    seconds: tuple[float, ...]


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
    """Train by Adam on whole batches of `BATCH` scans, in an order that depends on `seed` alone."""
    rng = np.random.default_rng(seed)
    state = _ADAM.init(trainable)
    step_size = jnp.asarray(rate, jnp.float32)
    seconds: list[float] = []
    for _ in range(epochs):
        # Staged before the clock runs, so that a step's time is the step's.
        for images, labels in jax.block_until_ready(_batches(scans, rng)):
            begin = time.perf_counter()
            trainable, state = jax.block_until_ready(
                _step(trainable, frozen, state, step_size, images, labels)
            )
            seconds.append(time.perf_counter() - begin)
        on_epoch()
    return Fit(trainable, tuple(seconds[1:]))


def _batches(scans: Scans, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    order = rng.permutation(len(scans))
    whole = len(scans) - len(scans) % BATCH
    return [
        (scans.images[chosen], scans.labels[chosen]) for chosen in order[:whole].reshape(-1, BATCH)
    ]

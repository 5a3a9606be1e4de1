"""Training with early stopping, as one loop that a program can contain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ._families import Effort


class Best(NamedTuple):
    """The arrays with the lowest validation error, the error, their step, the number of steps."""

    trainable: Any
    validation: Array
    best_step: Array
    steps: Array


def fine_tune(
    trainable: Any,
    loss: Callable[[Any, Array], Float[Array, ""]],
    error: Callable[[Any], Float[Array, ""]],
    rates: Any,
    effort: Effort,
    last: optax.GradientTransformation | None = None,
) -> Best:
    """Train by Adam with clipped gradients and a rate that decays to zero as a cosine.

    **Arguments:**

    - `loss(trainable, step)`: what training lowers.
    - `error(trainable)`: what decides when to stop.
    - `rates`: the initial learning rate of each array of `trainable`, in the same structure.
    - `last`: what changes the updates after Adam.
    """
    trainable = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), trainable)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    optimiser = adam if last is None else optax.chain(adam, last)
    decay = optax.cosine_decay_schedule(1.0, effort.steps)

    def train(step: Array, carry: Any) -> Any:
        trainable, state = carry
        gradient = eqx.filter_grad(lambda trainable: loss(trainable, step))(trainable)
        updates, state = optimiser.update(gradient, state)

        def moved(x: Array, update: Array, rate: Any) -> Array:
            return x + -rate * decay(step) * update

        return jax.tree.map(moved, trainable, updates, rates), state

    def is_unfinished(carry: Any) -> Array:
        step, best_step = carry[:2]
        return (step <= effort.steps) & (step - best_step <= effort.every * effort.patience)

    def evaluate(carry: Any) -> Any:
        step, best_step, lowest, best, current = carry
        value = error(current[0])
        better = value < lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), current[0], best)
        best_step = jnp.where(better, step, best_step)
        end = step + effort.every
        is_last = ~is_unfinished((end, best_step))
        current = jax.lax.fori_loop(step, jnp.where(is_last, step, end), train, current)
        return end, best_step, jnp.fmin(value, lowest), best, current

    # Step 0 counts: the untouched model is a candidate.
    zero, start = jnp.asarray(0), (trainable, optimiser.init(trainable))
    carry = (zero, zero, jnp.asarray(jnp.inf), trainable, start)
    steps, best_step, lowest, best, _ = jax.lax.while_loop(is_unfinished, evaluate, carry)
    return Best(best, lowest, best_step, steps - effort.every)

"""Calibrated probabilities of an ensemble of classifiers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jno.lora import SelectionError
from jno.lora.extending import warn

from ._calibrated import outputs_of, wide
from ._ensemble import Ensemble, check_calibrated
from ._folds import Folds, checked_count, held_out_mask, holds


class CalibratedClasses(eqx.Module):
    """An ensemble of classifiers with a temperature: `probabilities(calibrated, x)`. A pytree."""

    ensemble: Ensemble
    temperature: Float[Array, ""]


def calibrate_classes(
    ensemble: Ensemble, x: PyTree, labels: PyTree, held_out: Folds | Bool[Any, "k n"] | None
) -> CalibratedClasses:
    """Fit one temperature to the labels of examples that the members did not see.

    Temperature scaling (Guo et al., arXiv:1706.04599), of an ensemble.

    The probabilities are the mean of `softmax(logits / temperature)` over the members, and over the
    members that left an example out while the temperature is fitted. With folds, this is one
    member, which needs a higher temperature than the mean: the probabilities are somewhat too even.
    Examples that no member has seen are better, if there are enough.

    **Arguments:**

    - `x`, `held_out`: as for `calibrate`. A member returns logits, with the classes in the last
        axis.
    - `labels`: numbers of classes from 0, in the shape of the outputs without the last axis.

    **Raises:** `SelectionError` for other labels, for NaN, or if no example was held out. Warns
    below eight held-out examples, and if the most likely temperature is zero or infinite.
    """
    logits = wide(outputs_of(ensemble, x))
    labels = jnp.asarray(labels)
    if logits.shape[1:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise SelectionError(
            f"`labels` must be whole numbers of the shape {logits.shape[1:-1]}, but are "
            f"{labels.dtype}{list(labels.shape)}"
        )
    mask = held_out_mask(held_out, ensemble.members, logits.shape[1])
    checked_count(mask)
    last = logits.shape[-1] - 1
    if holds(jnp.any((labels < 0) | (labels > last))):
        raise SelectionError(
            f"`labels` must lie from 0 to {last}, but lie from {labels.min()} to {labels.max()}. "
            "Leave examples without a label out."
        )
    if holds(jnp.any(jnp.isnan(logits))):
        raise SelectionError("The outputs have NaN. Leave the examples with NaN out.")
    temperature = _temperature(logits, labels, mask)
    if holds(~((temperature > 0.01) & (temperature < 100))):
        warn(
            f"The most likely temperature is {temperature:.2g}, at an end of the range: all "
            "held-out labels are predicted rightly, or the members know nothing. Calibrate on "
            "more examples."
        )
    return CalibratedClasses(ensemble, temperature)


@jax.jit
def _temperature(logits: Array, labels: Array, mask: Bool[Array, "k n"]) -> Float[Array, ""]:
    """The temperature with the highest likelihood."""
    held_out = mask.reshape(*mask.shape, *[1] * (labels.ndim - 1))
    count = jnp.sum(held_out, axis=0).astype(logits.dtype)

    def nll(log_temperature: Array) -> Array:
        logs = jax.nn.log_softmax(logits / jnp.exp(log_temperature))
        chosen = jnp.broadcast_to(labels[None, ..., None], (*logs.shape[:-1], 1))
        logs = jnp.take_along_axis(logs, chosen, axis=-1)[..., 0]
        logs = jax.nn.logsumexp(jnp.where(held_out, logs, -jnp.inf), axis=0)
        return -jnp.sum(jnp.where(count > 0, logs - jnp.log(jnp.maximum(count, 1)), 0))

    # A grid, and finer grids around the best point, because a flat end has no slope to follow.
    low, high = (jnp.asarray(end, logits.dtype) for end in (-5.0, 5.0))
    for _ in range(4):
        points = low + (high - low) * jnp.linspace(0, 1, 33, dtype=low.dtype)
        best = jnp.argmin(jax.lax.map(nll, points))
        low, high = points[jnp.maximum(best - 1, 0)], points[jnp.minimum(best + 1, 32)]
    return jnp.exp((low + high) / 2)


def probabilities(calibrated: CalibratedClasses, x: PyTree) -> Float[Array, "*n classes"]:
    """The calibrated probabilities of the classes, for one example."""
    check_calibrated(calibrated, CalibratedClasses, "calibrate_classes")
    ensemble = calibrated.ensemble
    logits = wide(ensemble.each(lambda member: ensemble.call(member, x)))
    temperature = calibrated.temperature.astype(logits.dtype)
    return jnp.mean(jax.nn.softmax(logits / temperature), axis=0)

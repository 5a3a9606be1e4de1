"""The parameter of new data with an interval, from fits at values that members did not see."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree
from scipy.special import stdtrit  # JAX needs SciPy

from jno.lora import SelectionError
from jno.lora.extending import warn
from jno_lora_conditional import Conditional, Fitted, coordinate_named, fit

from ._ensemble import Ensemble, check_calibrated
from ._folds import Folds, held_out_mask, holds
from ._scales import checked_level

Loss = Callable[[PyTree, PyTree], Array]


class FittedInterval(NamedTuple):
    """A fitted parameter with its error: `z ± std`.

    - `z`: the mean of the members' fits, in the coordinate.
    - `std`: the standard deviation of `z`.
    - `lower`, `upper`: the interval.
    - `loss`: the mean loss of the members' fits.
    - `is_outside`: whether the interval may not hold, because `z` lies outside of the training
        values and the source, or because `loss` is higher than `usual_loss` of the calibration.
        (The fit to data from outside is drawn towards the training values.)
    """

    z: Float[Array, "*p"]
    std: Float[Array, "*p"]
    lower: Float[Array, "*p"]
    upper: Float[Array, "*p"]
    loss: Float[Array, ""]
    is_outside: Bool[Array, ""]


class FitCalibration(eqx.Module):
    """What `fit_interval` needs: an ensemble of conditionals, and the errors of its fits.

    - `values`, `fitted`: the true value of each held-out query, and its fit by a member that had
        not seen this value.
    - `error`: the root mean square of their difference in the coordinate.
    - `losses`: the losses of these fits.
    - `usual_loss`: exceeded by 5 % of the fits inside, according to the losses at values between
        others. (The source counts. A member that fits a value beyond its own is outside itself.)
    """

    ensemble: Ensemble
    grid: Float[Array, "G *p"]
    values: Float[Array, "n *p"]
    fitted: Float[Array, "n *p"]
    error: Float[Array, "*p"]
    losses: Float[Array, " n"]
    usual_loss: Float[Array, ""]
    distinct: int = eqx.field(static=True)
    loss: Loss = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    coordinate: str = eqx.field(static=True)

    def __repr__(self) -> str:
        return (
            f"FitCalibration({self.ensemble.members} members, {self.distinct} values, "
            f"error={self.error!s} in the coordinate {self.coordinate!r})"
        )


def calibrate_fit(
    ensemble: Ensemble,
    loss: Loss,
    data: PyTree,
    values: PyTree,
    held_out: Folds | Bool[Any, "k n"],
    grid: PyTree,
    *,
    steps: int = 20,
    coordinate: str = "z",
) -> FitCalibration:
    """Measure how far fits are from the true parameter, at values that a member did not see.

    A likelihood does not give the error of a fitted parameter, because the model's bias is not
    noise. So each training value is fitted by the member that left it out.

    **Arguments:**

    - `ensemble`: of conditionals, trained with `folds(values=values)`.
    - `loss`: `loss(model, query)` of an adapted model and the data of one query, as for `fit`.
    - `data`: the queries, with an axis of `n` in front. They must be like later queries: one
        simulation each if the parameter of one simulation will be fitted.
    - `values`: the true value of each query, `(n,)` or `(n, p)`.
    - `held_out`: the folds, `folds(values=values)`, or bools `(members, n)`.
    - `grid`, `steps`, `coordinate`: as for `jno_lora_conditional.fit`.

    **Raises:** `SelectionError` as `fit`, for values that each member has seen, for values that
    the coordinate does not take, and for values in another shape than the points of the grid.
    """
    values, grid = (jnp.asarray(array, float) for array in (values, grid))
    if values.shape[1:] != grid.shape[1:]:
        raise SelectionError(
            f"`values` must have the shape {('n', *grid.shape[1:])}, because `grid` has the shape "
            f"{grid.shape}, but has {values.shape}"
        )
    to = coordinate_named(coordinate)
    if not np.all(to.has(np.asarray(values))):
        raise SelectionError(
            f"The coordinate {coordinate!r} takes {to.takes} parameters, but `values` has "
            f"{np.unique(np.asarray(values)[~to.has(np.asarray(values))])!s}. Choose another."
        )
    mask = np.asarray(held_out_mask(held_out, ensemble.members, len(values)))
    distinct, value_of = np.unique(np.asarray(values), axis=0, return_inverse=True)
    same = value_of.reshape(-1) == np.arange(len(distinct))[:, None]
    unseen = np.stack([[np.all(member[rows]) for rows in same] for member in mask])
    if not np.all(np.any(unseen, axis=0)):
        raise SelectionError(
            "Each value must have a member that did not see it, but no member left out all queries "
            f"of {distinct[~np.any(unseen, axis=0)]!s}. Train with folds(values=values), and give "
            "these folds."
        )
    chosen = jnp.asarray(np.argmax(unseen, axis=0)[value_of.reshape(-1)])

    @eqx.filter_jit
    def fits(ensemble: Ensemble, chosen: Array, data: PyTree) -> Fitted:
        def fit_of(member: Array, query: PyTree) -> Fitted:
            return _fit(ensemble.member(member), query, loss, grid, steps, coordinate)

        return jax.vmap(fit_of)(chosen, data)

    fitted, losses, _ = fits(ensemble, chosen, jax.tree.map(jnp.asarray, data))
    error = jnp.sqrt(jnp.mean((to.of(fitted) - to.of(values)) ** 2, axis=0))
    known = np.stack([*to.of(jnp.asarray(distinct)), to.of(_source_of(ensemble))])
    between = [_are_between(np.delete(known, i, 0), known[i]) for i in range(len(distinct))]
    inside = np.array(between)[value_of.reshape(-1)]
    usual = _usual_loss(np.asarray(losses)[inside if np.any(inside) else ...])
    measured = fitted, error, losses, jnp.asarray(usual, losses.dtype)
    settings = len(distinct), loss, steps, coordinate
    return FitCalibration(ensemble, grid, values, *measured, *settings)


def _usual_loss(losses: np.ndarray) -> float:
    """The loss that 5 % of new ones exceed: Student's, of their logarithms if they have them."""
    if len(losses) < 2:
        return np.inf
    logs = np.log(losses) if (is_positive := np.all(losses > 0)) else losses
    quantile = float(stdtrit(len(logs) - 1, 0.95)) * np.sqrt(1 + 1 / len(logs))
    highest = np.mean(logs) + quantile * np.std(logs, ddof=1)
    return np.exp(highest) if is_positive else highest


def _source_of(ensemble: Ensemble) -> Array:
    return jnp.asarray(ensemble.member(0).basis.source, float)


def _are_between(known: ArrayLike, value: ArrayLike) -> Array:
    """Whether `known` values, in the coordinate, lie on both sides of each number of a value."""
    # The source is NaN if the coordinate lacks it.
    low, high = jnp.nanmin(known, axis=0), jnp.nanmax(known, axis=0)
    return jnp.all((low <= value) & (value <= high))


def fit_interval(calibration: FitCalibration, data: PyTree, level: float = 0.9) -> FittedInterval:
    """The parameter of one query, with the error of fits at held-out values.

    All members fit the query, and `z` is the mean of their fits in the coordinate. May be compiled
    and mapped over queries. Outside of `jax.jit`, a query whose interval may not hold is a
    `JnoLoraWarning`; inside, look at `is_outside`.

    The quantile is Student's, with as many degrees of freedom as there are distinct values, because
    a few values do not determine the error well.
    """
    check_calibrated(calibration, FitCalibration, "calibrate_fit")
    coordinate = coordinate_named(calibration.coordinate)
    settings = calibration.loss, calibration.grid, calibration.steps, calibration.coordinate
    fits = calibration.ensemble.each(lambda member: _fit(member, data, *settings))
    u = jnp.mean(coordinate.of(fits.z), axis=0)
    z, slope = jax.jvp(coordinate.back, (u,), (jnp.ones_like(u),))
    width = float(stdtrit(calibration.distinct, (1 + checked_level(level)) / 2)) * calibration.error
    ends = u - width, u + width
    if calibration.coordinate == "sqrt":
        ends = jnp.maximum(ends[0], 0), ends[1]
    ends = jnp.stack([coordinate.back(end) for end in ends])
    if calibration.coordinate == "1/z":  # an end beyond zero, on the other side of infinity
        ends = jnp.where(ends * z > 0, ends, jnp.sign(z) * jnp.inf)
    loss, source = jnp.mean(fits.loss), coordinate.of(_source_of(calibration.ensemble))
    known = [*coordinate.of(calibration.values)]
    known += [source - calibration.error, source + calibration.error]  # fits there have errors
    is_inside, is_usual = _are_between(jnp.stack(known), u), loss <= calibration.usual_loss
    is_outside = ~(is_inside & is_usual)
    if holds(is_outside):
        low, high = (end(calibration.values, axis=0) for end in (jnp.min, jnp.max))
        why = (
            f"its loss, {loss:.3g}, is above the usual {calibration.usual_loss:.3g}, so that the "
            "data may come from outside of the training values"
            if is_inside
            else f"it lies outside of the training values, from {low!s} to {high!s}, and of the "
            f"source, {_source_of(calibration.ensemble)!s}"
        )
        warn(f"The interval of the fitted value {np.asarray(z)!s} may not hold: {why}.")
    std = jnp.abs(slope) * calibration.error
    return FittedInterval(z, std, jnp.min(ends, axis=0), jnp.max(ends, axis=0), loss, is_outside)


def _fit(
    conditional: Conditional, query: PyTree, loss: Loss, grid: Array, steps: int, coordinate: str
) -> Fitted:
    """The fit of one query by one member."""
    objective = lambda model: loss(model, query)  # noqa: E731
    return fit(conditional, objective, grid, steps=steps, coordinate=coordinate)

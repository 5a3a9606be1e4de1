"""Scales of a spread: `variance = a^2 spread^2 + b^2`, fitted to residuals, and their scores."""

import math
from collections.abc import Callable
from statistics import NormalDist

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, Int, Shaped

from jno.lora import SelectionError

Elements = Float[Array, "n ..."]  # a number for each element of the output of each example
Number = Float[Array, ""]

LEVELS = 1001  # of the quantiles of the residuals


class Scales(eqx.Module):
    """The calibration of one array of the output, and the scores of its held-out residuals.

    - `path`: of the array in the output.
    - `spread`, `constant`: the scales `a` and `b` of `variance = a^2 spread^2 + b^2`. With data of
        the source of a conditional, `b` is the width there.
    - `quantiles`: of `|residual| / std` of the examples that no member has seen, at `LEVELS` levels
        from 0 to 1, for conformal intervals.
    - `coverage`: the fraction of the residuals inside the intervals of 90 %.
    - `crps`, `constant_crps`: the mean continuous ranked probability score, in the units of the
        output (smaller is better), with the two scales, and with a constant width.

    For the scores, the scales are fitted to all folds but one, without new inputs, and scored on
    this one. Examples that no member has seen are scored by fifths.
    """

    path: str = eqx.field(static=True)
    spread: Number
    constant: Number
    quantiles: Float[Array, " levels"]
    coverage: Number
    crps: Number
    constant_crps: Number

    def std(self, variance: Array) -> Array:
        """The standard deviation where the members have this variance."""
        return jnp.sqrt(self.spread**2 * variance + self.constant**2)


def fit_scales(
    variance: Elements,
    residual: Elements,
    weights: Float[Array, " n"] | None = None,
    new_variance: Array | None = None,
    constant: Number | None = None,
) -> tuple[Number, Number]:
    """`(a, b)` of `variance = a^2 spread^2 + b^2`, for any predictor with a spread of its own.

    Their ratio has the lowest Gaussian negative log-likelihood of the residuals of held-out
    examples, and their size is such that intervals of 90 % hold 90 % of these residuals.

    **Arguments:**

    - `variance`, `residual`: at the held-out examples.
    - `weights`: of the examples, by default equal.
    - `new_variance`: at new inputs, in any shape. The size is then such that the Gaussian errors at
        these inputs have the 90 % quantile of the residuals.
    - `constant`: `b`, if it is known, such as the error where the spread is zero. Then only `a` is
        fitted.

    With `variance = c (t s + 1 - t)`, where `s` is the relative variance of the members, the most
    likely `c` is a mean for each `t`, so that only `t` from 0 to 1 is searched: on a grid, and on
    finer grids around the best point.
    """
    variance, residual = jnp.asarray(variance), jnp.asarray(residual)
    weights = jnp.ones(len(residual), residual.dtype) if weights is None else weights
    weights = jnp.broadcast_to(_beside(weights, residual), residual.shape)
    if constant is not None:
        return _spread_beside(constant, variance, residual, weights, new_variance), constant
    total = jnp.sum(weights)
    mean = jnp.sum(weights * variance) / total
    mean = jnp.where(mean > 0, mean, 1)
    tiny = jnp.finfo(residual.dtype).tiny

    def relative(variance: Array, t: Number) -> Array:
        return jnp.maximum(t * variance / mean + (1 - t), tiny)

    def nll(t: Number) -> Number:
        shape = relative(variance, t)
        c = jnp.sum(weights * residual**2 / shape) / total
        return jnp.log(jnp.maximum(c, tiny)) + jnp.sum(weights * jnp.log(shape)) / total

    def best_of(points: Float[Array, " P"]) -> tuple[Number, Number, Number]:
        scores = jax.lax.map(nll, points)
        best = jnp.argmin(jnp.where(jnp.isnan(scores), jnp.inf, scores))
        last = len(points) - 1
        return points[best], points[jnp.maximum(best - 1, 0)], points[jnp.minimum(best + 1, last)]

    inner = jax.nn.sigmoid(jnp.linspace(-12, 12, 47, dtype=residual.dtype))
    t, low, high = best_of(jnp.pad(inner, 1, constant_values=(0, 1)))
    for _ in range(3):
        t, low, high = best_of(low + (high - low) * jnp.linspace(0, 1, 17, dtype=low.dtype))
    # A spread of zero everywhere says nothing, whatever `t` is.
    t = jnp.where(jnp.any(weights * variance > 0), t, 0)
    if new_variance is None:
        size = constant_width(residual / jnp.sqrt(relative(variance, t)), weights)
    else:
        std = jnp.sqrt(relative(new_variance, t))
        size = constant_width(residual, weights) / _constant_width_of(std)
    return size * jnp.sqrt(t / mean), size * jnp.sqrt(1 - t)


def _spread_beside(
    constant: Number, variance: Elements, residual: Elements, weights: Elements, new: Array | None
) -> Number:
    """The scale `a` of the spread, beside a constant scale that is known.

    - `new`: the variance at new inputs.
    """
    # Where the members agree, no scale helps.
    weights = jnp.where(variance > 0, weights, 0)
    excess = jnp.maximum((residual / gaussian_quantile(0.9)) ** 2 - constant**2, 0)
    # The smallest `a^2` with which the interval holds the residual.
    smallest = excess / jnp.where(variance > 0, variance, 1)
    a = jnp.sqrt(_weighted_quantile(smallest, weights, 0.9))
    if new is not None:
        width = constant_width(residual, weights)
        of_spread = _constant_width_of(jnp.sqrt(new))

        def is_narrow(a: Number) -> Array:
            std = jnp.sqrt(a**2 * new + constant**2)
            return _share_within(gaussian_quantile(0.9) * width, std) > 0.9

        has_spread = jnp.any(new > 0)
        a = jnp.where(has_spread, _bisected(is_narrow, width / of_spread), a)
    return jnp.where(jnp.any(weights > 0), a, 0)


def constant_width(residual: Elements, weights: Elements) -> Number:
    """The standard deviation whose intervals of 90 % hold 90 % of the residuals."""
    quantile = _weighted_quantile(jnp.abs(residual), weights, 0.9)
    rms = jnp.sqrt(jnp.sum(weights * residual**2) / jnp.sum(weights))
    # If nearly all residuals are zero, so is their quantile.
    return jnp.where(quantile > 0, quantile / gaussian_quantile(0.9), rms)


def _weighted_quantile(values: Elements, weights: Elements, level: float) -> Number:
    """The quantile that a new value lies below with the probability `level`."""
    # Elements without a weight go to the end, where they change no quantile.
    values = jnp.where(weights > 0, values, jnp.max(jnp.where(weights > 0, values, 0))).ravel()
    order = jnp.lexsort((weights.ravel() == 0, values))
    values, weights = values[order], weights.ravel()[order]
    total = jnp.sum(weights) * (1 + 1 / jnp.sum(weights > 0))
    return jnp.interp(level * total, jnp.cumsum(weights), values)


def _constant_width_of(std: Array) -> Number:
    """The constant width of Gaussian errors with these deviations, by bisection."""

    highest = gaussian_quantile(0.9) * jnp.max(std)
    quantile = _bisected(lambda middle: _share_within(middle, std) < 0.9, highest)
    rms = jnp.sqrt(jnp.mean(std**2))
    return jnp.where(quantile > 1e-6 * rms, quantile / gaussian_quantile(0.9), rms)


def _share_within(distance: Number, std: Array) -> Number:
    """The share of Gaussian errors with these deviations that is not larger than `distance`."""
    return jnp.mean(erf(distance / (math.sqrt(2) * std)))


def _bisected(is_below: Callable[[Number], Array], highest: Number) -> Number:
    """The number from 0 to `highest` below which `is_below` holds."""

    def halved(_: object, ends: tuple[Number, Number]) -> tuple[Number, Number]:
        middle = (ends[0] + ends[1]) / 2
        below = is_below(middle)
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    low, high = jax.lax.fori_loop(0, 50, halved, (jnp.zeros_like(highest), highest))
    return (low + high) / 2


@jax.jit
def calibrated_arrays(
    variance: Elements,
    residual: Elements,
    usable: Bool[Array, " n"],
    unseen: Bool[Array, " n"],
    part_of: Int[Array, " n"],
    new_variance: Array | None,
    at_source: Bool[Array, " n"] | None,
) -> tuple[Array, ...]:
    """The arrays of `Scales`, for one output. `part_of` numbers the parts that are scored.

    - `usable`, `unseen`: whether any, and whether each member left an example out.
    - `at_source`: the examples that `b` is fitted to, if there are some.
    """
    weights = usable.astype(residual.dtype)
    full = jnp.broadcast_to(_beside(weights, residual), residual.shape)

    def fitted(weights: Array, new_variance: Array | None = None) -> tuple[Number, Number]:
        a, b = fit_scales(variance, residual, weights, new_variance)
        if at_source is None:
            return a, b
        there = _beside(at_source.astype(residual.dtype), residual)
        width = constant_width(residual, jnp.broadcast_to(there, full.shape))
        beside, _ = fit_scales(variance, residual, weights, new_variance, width)
        is_known = jnp.any(at_source)
        return jnp.where(is_known, beside, a), jnp.where(is_known, width, b)

    def add(part: Array, sums: tuple[Number, ...]) -> tuple[Number, ...]:
        """Add the scores of one part, with scales that are fitted to the other parts."""
        inside = weights * (part_of == part).astype(weights.dtype)
        a, b = fitted(weights - inside)
        constant = constant_width(residual, full - _beside(inside, full))
        std = jnp.sqrt(a**2 * variance + b**2)
        covered = (jnp.abs(residual) <= gaussian_quantile(0.9) * std).astype(residual.dtype)
        scores = covered, crps(residual, std), crps(residual, jnp.full_like(std, constant))
        inside = _beside(inside, residual) / jnp.sum(full)
        return tuple(total + jnp.sum(inside * s) for total, s in zip(sums, scores, strict=True))

    zero = jnp.zeros((), residual.dtype)
    scores = jax.lax.fori_loop(0, jnp.max(part_of) + 1, add, (zero, zero, zero))
    a, b = fitted(weights, new_variance)
    std = jnp.sqrt(a**2 * variance + b**2)
    ratio = jnp.abs(residual) / jnp.maximum(std, jnp.finfo(std.dtype).tiny)
    ratio = jnp.where(_beside(unseen, residual), ratio, jnp.nan)
    quantiles = jnp.nanquantile(ratio, jnp.linspace(0, 1, LEVELS, dtype=ratio.dtype))
    quantiles = jnp.where(jnp.any(unseen), quantiles, 0)
    return a, b, quantiles, *scores


def crps(residual: Array, std: Array) -> Array:
    """The continuous ranked probability score of a Gaussian, for each element.

    Gneiting & Raftery, "Strictly proper scoring rules, prediction, and estimation" (2007).
    """
    std = jnp.maximum(std, jnp.finfo(std.dtype).tiny)
    u = residual / std
    return std * (u * (2 * norm.cdf(u) - 1) + 2 * norm.pdf(u) - 1 / math.sqrt(math.pi))


def gaussian_quantile(level: float) -> float:
    """The half width, in standard deviations, of the central Gaussian interval of this level."""
    return NormalDist().inv_cdf((1 + checked_level(level)) / 2)


def checked_level(level: float) -> float:
    """The level of an interval. **Raises:** `SelectionError` if it is not between 0 and 1."""
    if not 0 < level < 1:
        raise SelectionError(f"level must lie between 0 and 1, such as 0.9, but is {level}")
    return level


def _beside(weights: Shaped[Array, " n"], elements: Array) -> Array:
    return weights.reshape(-1, *[1] * (elements.ndim - 1))

"""The laws of conditionals, as functions of the results of one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_TOLERANCE = 1e-8  # of values in float64
_OF_DIFFERENCES = 1e-6  # of derivatives, against central differences


class Results(NamedTuple):
    """The results of one program, with outputs as vectors."""

    name: str  # of the adapters
    plain: Any  # the plain layer's output, in float32
    source: Any  # the call at the source, in float32
    plain_weights: Any
    source_weights: Any  # of the merged layer at the source; `None` if it cannot be merged
    looped: Any  # calls at some parameters, one after the other; the last is the source
    mapped: Any
    summed: Any  # the call at the first of these, with the sums of directions as fields
    merged: Any  # the merged layer at the first of these
    derivatives: Any  # at the source and at the first, for each number of the parameter
    differences: Any
    gradients: Any  # by path of the array
    traces: int
    allowed: tuple[float, float]  # the errors at the source, of the call and the merged layer
    file_problem: str = ""


def _source(results: Results) -> str:
    of_call, of_weights = results.allowed
    if results.source_weights is not None:
        error = _error(results.source_weights, results.plain_weights)
        if not error <= of_weights:
            return (
                f"at the source, the merged layer differs from the plain layer by {error:.1e} "
                "after training: a trained field changes the layer there, although it does not "
                "move. Let it start where a small change of it changes `merge()`, so that it moves"
            )
    error = _error(results.source, results.plain)
    if error <= of_call:
        return ""
    return (
        f"at the source, the call differs from the plain layer's by {error:.1e}, allowed "
        f"{of_call:.1e}. Compute the layer's output, and add the update, which is zero at the "
        "start; or accept a rounding by `rounding=`"
    )


def _acts(results: Results) -> str:
    if _error(results.looped[0], results.looped[-1]) > _TOLERANCE:
        return ""
    return "the parameter changes nothing: the call does not read the fields that move"


def _merge(results: Results) -> str:
    if results.merged is None:
        return ""
    error = _error(results.merged, results.looped[0])
    if error <= _TOLERANCE:
        return ""
    return f"the merged layer gives another output than the call, relative error {error:.1e}"


def _map(results: Results) -> str:
    error = _error(results.mapped, results.looped)
    if not error <= _TOLERANCE:
        return f"`vmap` over parameters gives other outputs than a loop, relative error {error:.1e}"
    error = _error(results.summed, results.looped[0])
    if not error <= _TOLERANCE:
        return (
            "`with_directions` gives another output than fields that are the sums of their "
            f"directions, relative error {error:.1e}"
        )
    if results.traces != 1:
        return f"`vmap` over parameters traced the call {results.traces} times"
    return ""


def _derivative(results: Results) -> str:
    for place, got, expected in zip(
        ("at the source", "away from the source"),
        results.derivatives,
        results.differences,
        strict=True,
    ):
        if not np.all(np.isfinite(got)):
            return (
                f"the derivative in the parameter is not finite {place}: a norm or a root at zero? "
                "Take the root of `jnp.where(x > 0, x, 1)`"
            )
        error = _error(got, expected)
        if not error <= _OF_DIFFERENCES:
            return (
                f"the derivative in the parameter differs from central differences {place}, "
                f"relative error {error:.1e}: a `stop_gradient`, or a custom rule, takes a field "
                "that moves for a constant. Detach only what is not a field"
            )
    return ""


def _gradients(results: Results) -> str:
    bad = [
        path for path, gradient in results.gradients.items() if not np.all(np.isfinite(gradient))
    ]
    return f"the gradients of {', '.join(bad)} are not finite" if bad else ""


# By name, a function that returns a problem or an empty text.
LAWS: dict[str, Callable[[Results], str]] = {
    "source": _source,
    "acts": _acts,
    "merge": _merge,
    "map": _map,
    "derivative": _derivative,
    "gradients": _gradients,
    "file": lambda results: results.file_problem,
}


def _error(actual: Any, expected: Any) -> float:
    """The largest error, relative to the largest number. NaN if a number is not finite."""
    return float(np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-3))

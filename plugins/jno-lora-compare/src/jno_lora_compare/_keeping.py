"""The error on what the model knew, before and after a candidate trains."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from jno.lora import SelectionError

from ._checks import check_loss


class Kept(NamedTuple):
    """Earlier data, and the error on them of the model as it is."""

    batches: list[PyTree]
    error: Callable[[Any, Any], Any]
    before: float

    def error_of(self, model: PyTree) -> float:
        return _mean(self.error, model, self.batches)


def kept_data(keep: Any, loss: Callable[[Any, Any], Any], model: PyTree) -> Kept:
    """The argument `keep` of `compare`, and the error of `model` on it.

    **Raises:** `SelectionError` if there is no batch, or the error is not one real number; the
    error of the call on `model`.
    """
    has_error = isinstance(keep, tuple) and len(keep) == 2 and callable(keep[1])
    given, error = keep if has_error else (keep, loss)
    # A loader may have no end, and every candidate reads all batches.
    is_loader = not isinstance(given, Iterable) or iter(given) is given
    batches = [] if is_loader else list(given)
    if not batches:
        raise SelectionError(
            "`keep` must be a list of batches of earlier data, or (batches, error) with an "
            f"error(model, batch), but is {keep!r}."
        )
    for batch in batches:
        check_loss(error, model, batch, "error" if has_error else "loss")
    error = eqx.filter_jit(error)
    return Kept(batches, error, _mean(error, model, batches))


def _mean(error: Callable[[Any, Any], Any], model: PyTree, batches: list[PyTree]) -> float:
    return math.fsum(float(error(model, batch)) for batch in batches) / len(batches)

"""Check the arguments of `compare` before anything is trained."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import SelectionError
from jno.lora.extending import adapted_layers, bullets, expect_model, show_array, show_path

# `loss(model, batch)` returns a scalar.
Loss: TypeAlias = Callable[[PyTree, PyTree], Array]


def check_model(model: PyTree) -> None:
    expect_model(model, "compare")
    adapted = [show_path(path) for path, _ in adapted_layers(model)]
    if adapted:
        raise SelectionError(
            "`compare` adapts the model itself, once for each candidate, but it carries adapters "
            f"already:\n{bullets(adapted)}\n"
            "Give it the model that `merge_lora` or `unwrap_lora` returns."
        )


def checked_rates(learning_rate: Any, optimizer: object) -> tuple[float, ...]:
    """The learning rates of Adam, which is empty if `optimizer` replaces Adam."""
    if optimizer is not None:
        if learning_rate is not None:
            raise SelectionError(
                "Both set a learning rate: leave out `learning_rate` or `optimizer`."
            )
        return ()
    try:
        rates = tuple(map(float, np.ravel(1e-3 if learning_rate is None else learning_rate)))
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise SelectionError(
            "`learning_rate` must be a positive number, or several of them, but is "
            f"{learning_rate!r}."
        )
    return rates


def check_loss(loss: Loss, model: PyTree, batch: PyTree, name: str = "loss") -> None:
    try:
        value = eqx.filter_eval_shape(loss, model, batch)
    except Exception as err:
        err.add_note(f"Raised by `{name}(model, batch)` on the model as it is, before any adapter.")
        raise
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise SelectionError(
            f"`{name}(model, batch)` must return one real number, but returns {value!r}. Take the "
            "mean over the batch, and return nothing else."
        )


def check_batches(batches: list[PyTree]) -> None:
    if not batches:
        raise SelectionError("`batches` holds no batch.")
    first, *further_batches = map(_form, batches)
    for number, form in enumerate(further_batches, start=1):
        if form != first:
            raise SelectionError(
                "All batches must have the same shapes in the same containers, so that all steps "
                f"do the same work, but batch {number} differs from batch 0:\n  {form}\n  {first}"
                "\nLeave out the short batch at the end, and make arrays of numbers."
            )


def _form(batch: PyTree) -> str:
    """The arrays of a batch and their containers, as text."""
    shown = jax.tree.map(lambda x: show_array(x) if eqx.is_array(x) else repr(x), batch)
    return f"{shown} ({jax.tree.structure(batch)})"


def kept_error(keep: Any, loss: Loss, model: PyTree) -> Callable[[PyTree], float]:
    """The mean error of a model on the argument `keep` of `compare`.

    **Raises:** `SelectionError` if there are no batches, or the error of `model` is not one real
    number; and any error that the call on `model` raises.
    """
    has_error = isinstance(keep, tuple) and len(keep) == 2 and callable(keep[1])
    given, error = keep if has_error else (keep, loss)
    # Every candidate reads all batches, but a loader may be endless.
    is_loader = not isinstance(given, Iterable) or iter(given) is given
    batches = [] if is_loader else list(given)
    if not batches:
        raise SelectionError(
            "`keep` must be a list of batches of earlier data, or (batches, error) with an "
            f"error(model, batch), but is {keep!r}."
        )
    for batch in batches:
        check_loss(error, model, batch, "error" if has_error else "loss")
    compiled = eqx.filter_jit(error)
    return lambda model: statistics.fmean(float(compiled(model, batch)) for batch in batches)

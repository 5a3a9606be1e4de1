"""The other arguments of `compare`, checked before anything is trained."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError
from jno.lora.extending import adapted_layers, bullets, expect_model, show_array, show_path


def check_model(model: PyTree) -> None:
    expect_model(model, "compare")
    adapted = [show_path(path) for path, _ in adapted_layers(model)]
    if adapted:
        raise SelectionError(
            "`compare` adapts the model itself, once for each candidate, but it carries adapters "
            f"already:\n{bullets(adapted)}\n"
            "Give it the model that `merge_lora` or `unwrap_lora` returns."
        )


def check_steps(steps: Any) -> None:
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise SelectionError(f"`steps` must be a whole number of at least 1, but is {steps!r}.")


def checked_rates(learning_rate: Any, optimizer: Any) -> tuple[float, ...]:
    """The learning rates of Adam: none if `optimizer` replaces Adam."""
    if optimizer is not None and learning_rate is None:
        return ()
    if optimizer is not None:
        raise SelectionError(
            "`optimizer` brings its own learning rate: leave out `learning_rate` or `optimizer`."
        )
    try:
        numbers = np.asarray(1e-3 if learning_rate is None else learning_rate)
        is_real = np.issubdtype(numbers.dtype, np.number) and not np.iscomplexobj(numbers)
        rates = tuple(map(float, np.ravel(numbers))) if is_real else ()
    except (TypeError, ValueError):  # rows of different lengths, objects that are not numbers
        rates = ()
    if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise SelectionError(
            "`learning_rate` must be a positive number, or several of them, but is "
            f"{learning_rate!r}."
        )
    return rates


def check_loss(
    loss: Callable[[Any, Any], Any], model: PyTree, batch: PyTree, name: str = "loss"
) -> None:
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
    shapes, treedef = _structure(batches[0])
    for number, batch in enumerate(batches[1:], start=1):
        batch_shapes, batch_treedef = _structure(batch)
        if batch_shapes != shapes:
            difference = f"{batch_shapes}\n  {shapes}"
            advice = "Leave out the short batch at the end, and make arrays of numbers."
        elif batch_treedef != treedef:
            difference = f"{batch_treedef}\n  {treedef}"
            advice = "Put their arrays into the same containers."
        else:
            continue
        raise SelectionError(
            "All batches must have the same shapes, so that every step is the same work, but "
            f"batch {number} differs from batch 0:\n  {difference}\n{advice}"
        )


def _structure(batch: PyTree) -> tuple[str, Any]:
    leaves, treedef = jax.tree.flatten(batch)
    return ", ".join(show_array(x) if eqx.is_array(x) else repr(x) for x in leaves), treedef

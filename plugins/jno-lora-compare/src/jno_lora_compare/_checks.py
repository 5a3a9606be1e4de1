"""The arguments of `compare`, checked before anything is trained."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import adapted_layers, bullets, expect_model, show_array, show_path

from ._fitting import Loss


def check_model(model: PyTree) -> None:
    """**Raises:** `SelectionError` for a `Net`, and for a model that carries adapters."""
    expect_model(model, "compare")
    adapted = [show_path(path) for path, _ in adapted_layers(model)]
    if adapted:
        raise SelectionError(
            "`compare` adapts the model itself, once for each candidate, but it carries adapters "
            f"already:\n{bullets(adapted)}\n"
            "Give it the model that `merge_lora` or `unwrap_lora` returns."
        )


def check_candidates(candidates: list[Any]) -> None:
    """**Raises:** `SelectionError` without candidates, or if one is neither name nor class."""
    if not candidates:
        raise SelectionError("`compare` needs at least one candidate in `wrappers`.")
    for candidate in candidates:
        one_of_them = candidate if isinstance(candidate, list | tuple) else [candidate]
        if not one_of_them or not all(map(_names_an_adapter, one_of_them)):
            raise SelectionError(
                "A candidate is the name, variant or class of an adapter, a list of those, "
                f'"full", "none" or "all", but among `wrappers` is {candidate!r}.'
            )


def _names_an_adapter(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, type) and issubclass(item, LoRAWrapper))


def checked_rates(given: Any) -> tuple[float, ...]:
    """One learning rate or several. **Raises:** `SelectionError` unless all are positive."""
    try:
        numbers = np.asarray(given)
        is_real = np.issubdtype(numbers.dtype, np.number) and not np.iscomplexobj(numbers)
        rates = tuple(float(rate) for rate in np.ravel(numbers)) if is_real else ()
    except (TypeError, ValueError):  # rows of different lengths, and other things than arrays
        rates = ()
    if not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise SelectionError(
            f"`learning_rate` must be a positive number, or several of them, but is {given!r}."
        )
    return rates


def check_loss(loss: Loss, model: PyTree, batch: PyTree) -> None:
    """**Raises:** `SelectionError` unless the loss is a real scalar, and what it raises itself."""
    try:
        value = eqx.filter_eval_shape(loss, model, batch)
    except Exception as err:
        err.add_note("Raised by `loss(model, batch)` on the model as it is, before any adapter.")
        raise
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise SelectionError(
            f"`loss(model, batch)` must return one real number, but returns {value!r}. Take the "
            "mean over the batch, and return nothing else."
        )


def check_batches(batches: list[PyTree]) -> None:
    """**Raises:** `SelectionError` without batches, or if their shapes differ."""
    if not batches:
        raise SelectionError("`batches` holds no batch.")
    first, *others = map(_structure, batches)
    for number, other in enumerate(others, start=1):
        if other != first:
            differs, advice = 0, "Leave out the short batch at the end, and make arrays of numbers."
            if other[0] == first[0]:
                differs, advice = 1, "Put their arrays into the same containers."
            raise SelectionError(
                "All batches must have the same shapes, so that every step is the same work, but "
                f"batch {number} differs from batch 0:\n  {other[differs]}\n  {first[differs]}\n"
                f"{advice}"
            )


def _structure(batch: PyTree) -> tuple[str, Any]:
    leaves, treedef = jax.tree.flatten(batch)
    shapes = (show_array(x) if eqx.is_array(x) else repr(x) for x in leaves)
    return ", ".join(shapes), treedef

"""Checks that a `Net` makes before it changes."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._errors import SelectionError
from .._paths import bullets, path_str, show_array, show_path
from .._planning import Plan


def refuse_if_only_adapted(plan: Plan) -> None:
    """**Raises:** `SelectionError` if nothing is wrapped because every match is adapted already."""
    adapted = [row for row in plan.having("already adapted") if row.spec is not None]
    if adapted and not plan.wrapped:
        carriers = (f"{show_path(row.path)} ({row.explanation})" for row in adapted)
        raise SelectionError(
            "Every selected layer carries an adapter already, and a layer is never wrapped "
            f"twice:\n{bullets(carriers)}\n"
            "Call net.merge() to keep what they learned, or net.unwrap() to drop it, and then "
            "net.lora(...)."
        )


def check_update(expected: PyTree, given: PyTree, *, outdated: bool) -> None:
    """Check that `given` holds new values for the trainable leaves `expected`.

    - `outdated`: whether the adapters were exchanged since `partition` returned a tree.
    """
    advice = "Pass the tree that `net.partition()` returned, with new values."
    want = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(expected)}
    got = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(given)}
    wrong = [f"{show_path(p)}: trained here, missing in the update" for p in want.keys() - got]
    wrong += [f"{show_path(p)}: not a trainable leaf of this net" for p in got.keys() - want]
    for path in want.keys() & got.keys():
        old, new = show_array(want[path]), got[path]
        new = show_array(new) if eqx.is_array(new) else repr(new)
        if old != new:
            wrong.append(f"{show_path(path)}: expected {old}, got {new}")
    if wrong:
        raise SelectionError(
            f"The update does not fit this net{_guess(want, got, given)}:\n"
            f"{bullets(sorted(wrong))}\n{advice}"
        )
    if jtu.tree_structure(expected) != jtu.tree_structure(given):
        raise SelectionError(f"The update has other classes or static fields. {advice}")
    if outdated:
        raise SelectionError(
            "The model's adapters were exchanged after the last `net.partition()`, so that "
            "this update may hold the values of the former ones. Update the net before its "
            "adapters are exchanged, or train what another `net.partition()` returns."
        )


def _guess(want: Mapping[str, Any], got: Mapping[str, Any], given: PyTree) -> str:
    if type(given) is tuple and len(given) == 2:
        return ". It is a pair: both halves that `net.partition()` returned?"
    if got.keys() > want.keys():
        return ". It holds all that trains, and more: the whole model?"
    if got and not got.keys() & want.keys():
        return ". None of it trains here: the frozen half, or from before a merge?"
    return ""


def refuse_traced_update() -> None:
    """**Raises:** `SelectionError`, since the net would keep tracers after the transformation."""
    raise SelectionError(
        "net.update(...) was called inside of a JAX transformation (jit, grad, vmap), whose "
        "values are gone when it ends. In there, put the model together with "
        "`eqx.combine(trainable, frozen)`, and update the net with what the transformed function "
        "returns."
    )

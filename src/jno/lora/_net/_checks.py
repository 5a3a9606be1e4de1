"""What a `Net` refuses before it changes."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._errors import SelectionError
from .._paths import bullets, path_str, show_array, show_path
from .._planning import Plan


def refuse_if_only_adapted(plan: Plan) -> None:
    """**Raises:** `SelectionError` if nothing is wrapped since all that matches is adapted."""
    if plan.wrapped:
        return
    adapted = [
        f"{show_path(row.path)} ({row.explanation})"
        for row in plan.having("already adapted")
        if row.spec is not None
    ]
    if not adapted:
        return
    raise SelectionError(
        "Every selected layer carries an adapter already, and a layer is never wrapped twice:\n"
        f"{bullets(adapted)}\n"
        "Call net.merge() to keep what they learned, or net.unwrap() to drop it, and then "
        "net.lora(...)."
    )


def refuse_disabled(verb: str) -> None:
    """**Raises:** `SelectionError`: the net is disabled."""
    raise SelectionError(
        f"net.{verb}(...) was called in a `with net.disabled()` block, at whose end the net "
        "becomes what it was before. Call it after the block."
    )


def refuse_mask(verb: str) -> None:
    """**Raises:** `SelectionError`: a mask is pending."""
    raise SelectionError(
        f"A mask is pending, but {verb} takes no account of one. Use the mask up first (it is for "
        f"the next lora, plan, freeze or unfreeze), then call net.{verb}(...)."
    )


def check_update(expected: PyTree, given: PyTree, *, outdated: bool) -> None:
    """See that `given` holds other values for the trainable leaves `expected`.

    **Arguments:**

    - `outdated`: whether the adapters were exchanged since a tree was given out.

    **Raises:** `SelectionError` that lists the leaves that do not fit, or says what is outdated.
    """
    advice = "Pass the tree that `net.partition()` returned, with new values."
    want = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(expected)}
    got = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(given)}
    wrong = [f"{show_path(p)}: trained here, missing in the update" for p in want.keys() - got]
    wrong += [f"{show_path(p)}: not a trainable leaf of this net" for p in got.keys() - want]
    for path in want.keys() & got.keys():
        old, new = want[path], got[path]
        before, after = show_array(old), show_array(new) if eqx.is_array(new) else repr(new)
        if before != after:
            wrong.append(f"{show_path(path)}: expected {before}, got {after}")
    if wrong:
        raise SelectionError(
            f"The update does not fit this net{_whole(want, got, given)}:\n"
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


def _whole(want: Mapping[str, Any], got: Mapping[str, Any], given: PyTree) -> str:
    """What a tree that does not fit looks like as a whole, if it looks like something."""
    if type(given) is tuple and len(given) == 2:
        return ". It is a pair: both halves that `net.partition()` returned?"
    if got.keys() > want.keys():
        return ". It holds all that trains, and more: the whole model?"
    if got and not got.keys() & want.keys():
        return ". None of it trains here: the frozen half, or from before a merge?"
    return ""


def refuse_traced(verb: str) -> None:
    """**Raises:** `SelectionError`: a net from outside of a transformation would keep tracers."""
    raise SelectionError(
        f"net.{verb}(...) was called inside of a JAX transformation (jit, grad, vmap), whose "
        "values are gone when it ends. In there, put the model together with "
        "`eqx.combine(trainable, frozen)`, and update the net with what the transformed function "
        "returns."
    )

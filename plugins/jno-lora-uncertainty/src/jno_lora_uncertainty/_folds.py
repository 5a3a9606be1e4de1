"""Folds: the examples that each member of an ensemble does not see."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PRNGKeyArray, PyTree

from jno.lora import SelectionError
from jno.lora.extending import is_traced, warn

_FEW = 8  # held-out examples: fewer do not determine two scales


class Folds(eqx.Module):
    """One fold for each member, and the rows that each member trains on.

    - `held_out`: whether a member leaves out an example, `(k, n)`. Each example is in one fold.
    - `rows`: the training rows of each member, `(k, size)`. Folds of different sizes leave
        different numbers of rows. So that all members fit into one program, the shorter lists
        repeat some of their own rows.
    """

    held_out: Bool[Array, "k n"]
    rows: Int[Array, "k size"]

    def training(
        self, data: PyTree, *, size: int | None = None, key: PRNGKeyArray | None = None
    ) -> PyTree:
        """The training data of each member, with an axis of members in front.

        **Arguments:**

        - `data`: arrays with an axis of `n` examples in front.
        - `size`, `key`: take a random batch of `size` of these rows for each member.

        **Raises:** `SelectionError` for another number of examples than `n`, or for a `size`
        without a key or above the number of rows.
        """
        rows, n = self.rows, self.held_out.shape[1]
        # JAX clamps an index that is too large.
        shapes = map(np.shape, jax.tree.leaves(data))
        if wrong := {shape for shape in shapes if shape[:1] != (n,)}:
            raise SelectionError(
                f"These folds are of {n} examples, but `data` has arrays of the shapes "
                f"{', '.join(map(str, sorted(wrong)))}. Give all {n} examples, in the order of the "
                "folds, or make folds of this data."
            )
        if size is not None:
            if key is None or size > rows.shape[1]:
                raise SelectionError(
                    f"A random batch of {size} rows needs a key, key=step_key, and at most the "
                    f"{rows.shape[1]} rows of a member"
                )
            keys = jax.random.split(key, len(rows))
            rows = jax.vmap(jax.random.permutation)(keys, rows)[:, :size]
        return jax.tree.map(lambda array: jnp.asarray(array)[rows], data)


def folds(
    n: int | None = None,
    k: int | None = None,
    *,
    key: PRNGKeyArray | None = None,
    values: PyTree = None,
) -> Folds:
    """Random folds of `n` examples, or a fold for each value of a parameter.

    **Arguments:**

    - `n`, `k`, `key`: `k` random folds, by default five, whose sizes differ by at most one.
    - `values`: the value of the parameter of each example, `(n,)` or `(n, p)`, instead of `n`, `k`
        and `key`. Each distinct value is a fold, so that residuals tell of unseen values.

    **Raises:** `SelectionError` if these arguments do not make two folds or more.
    """
    fold_of, k = None, 5 if k is None and values is None else k
    if values is not None and n is None and k is None:
        distinct, fold_of = np.unique(np.asarray(values), axis=0, return_inverse=True)
        n, k, fold_of = len(fold_of), len(distinct), fold_of.reshape(-1)
    elif n is not None and k is not None and key is not None:
        fold_of = np.asarray(jax.random.permutation(key, n)) % k
    if n is None or k is None or fold_of is None or not 2 <= k <= n:
        raise SelectionError(
            f"Folds need 2 <= k <= n and a key, or two distinct values, but got n={n} and k={k}: "
            "folds(len(x), 5, key=jax.random.key(0)), or folds(values=values)"
        )
    held_out = fold_of == np.arange(k)[:, None]
    seen = [np.flatnonzero(~fold) for fold in held_out]
    rows = [np.resize(of_member, max(map(len, seen))) for of_member in seen]
    return Folds(jnp.asarray(held_out), jnp.asarray(np.stack(rows)))


def held_out_mask(held_out: Any, members: int, n: int) -> Bool[Array, "k n"]:
    """Whether each member left out each example. **Raises:** `SelectionError` for another shape."""
    if held_out is None:
        return jnp.ones((members, n), bool)
    mask = jnp.asarray(held_out.held_out if isinstance(held_out, Folds) else held_out)
    if mask.shape != (members, n) or mask.dtype != bool:
        raise SelectionError(
            f"`held_out` must say for each of {members} members and {n} examples whether the "
            f"member left it out, but has the shape {mask.shape} and the dtype {mask.dtype}. Give "
            "the folds that the members were trained with."
        )
    return mask


def mean_of_held_out(output: Array, mask: Bool[Array, "k n"]) -> Array:
    """The mean output for each example over the members that left it out."""
    weights = mask.astype(output.dtype)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=0, keepdims=True), 1)
    return jnp.sum(weights.reshape(*mask.shape, *[1] * (output.ndim - 2)) * output, axis=0)


def checked_count(mask: Bool[Array, "k n"]) -> Int[Array, ""]:
    """The number of held-out examples. Warns below eight. **Raises:** `SelectionError` for none."""
    examples = jnp.sum(jnp.any(mask, axis=0))
    if holds(examples == 0):
        raise SelectionError(
            "Every member has seen every example that is not at the source, so that nothing "
            "says how large the errors are. Train with folds(n, members, key=key), and give "
            "these folds."
        )
    warn_of_few("The error bars are calibrated on {} held-out examples", examples)
    return examples


def warn_of_few(what: str, examples: Int[Array, ""]) -> None:
    """Warns if there are examples, but too few to determine two scales."""
    if holds((examples > 0) & (examples < _FEW)):
        advice = f"Below {_FEW}, expect intervals that are too narrow or too wide"
        warn(f"{what.format(examples)}. {advice}.")


def holds(condition: ArrayLike) -> bool:
    """Whether a condition holds. Nobody knows of a traced condition, and then it does not."""
    return not is_traced(condition) and bool(condition)

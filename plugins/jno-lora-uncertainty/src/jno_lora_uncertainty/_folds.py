"""Folds: the examples that each member of an ensemble does not see."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from jno.lora import SelectionError


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
        if wrong := {
            np.shape(leaf) for leaf in jax.tree.leaves(data) if np.shape(leaf)[:1] != (n,)
        }:
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

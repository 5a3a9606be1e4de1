"""The methods of `combine`: checks of their arguments, and arithmetic of task vectors.

The updates of one matrix lie along the first axis: `(n, *stack, out, in)`.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._contract import check_part, check_rank
from .._errors import SelectionError
from .._paths import nearest

Combination = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]

EXACT = ("linear", "cat")
TRIMMING = ("ties", "magnitude_prune")
_RANDOM = ("dare_linear", "dare_ties")
_ELECTING = ("ties", "dare_ties")
_SPARSE = (*TRIMMING, *_RANDOM)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static arguments of `combine`."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str

    def check(self, *, has_key: bool) -> None:
        """**Raises:** `SelectionError` if an argument is missing or makes no sense."""
        method, methods = self.method, get_args(Combination)
        if method not in methods:
            near = nearest(str(method), methods, n=1)[0]
            raise SelectionError(
                f"There is no method {method!r}; did you mean {near!r}? "
                f"The methods are {', '.join(methods)}."
            )
        wrong, sign = "", self.majority_sign
        if self.density is None and method in _SPARSE:
            wrong = f"{method!r} needs a `density`, the part of the entries to keep, such as 0.5."
        elif self.density is not None and method not in _SPARSE:
            wrong = f"`density` is for {', '.join(_SPARSE)}; {method!r} keeps every entry."
        elif method in _RANDOM and not has_key:
            wrong = f"{method!r} drops entries at random, and needs a `key`."
        elif has_key and method not in _RANDOM:
            wrong = f"`key` is for {' and '.join(_RANDOM)}; {method!r} is not random."
        elif self.rank is not None and method in EXACT:
            wrong = (
                f"{method!r} is exact, so the ranks decide. For a smaller rank, use method='svd'."
            )
        elif sign not in get_args(MajoritySign):
            wrong = f"`majority_sign` must be 'total' or 'frequency', but is {sign!r}."
        elif sign != "total" and method not in _ELECTING:
            wrong = f"`majority_sign` is for {' and '.join(_ELECTING)}; {method!r} elects no sign."
        if wrong:
            raise SelectionError(wrong)
        if self.density is not None:
            check_part("density", self.density)
        if self.rank is not None:
            check_rank(self.rank)

    def sparse_sum(
        self, updates: Float[Array, "n *stack out in"], keys: list[PRNGKeyArray]
    ) -> Float[Array, "*stack out in"]:
        """The sum of sparse updates. `keys` has one for each update, if the method is random."""
        assert self.density is not None
        if self.method in TRIMMING:
            sparse = _trimmed(updates, self.density)
        else:  # each entry stays with probability `density`, divided by it
            kept = [jax.random.bernoulli(key, self.density, updates.shape[1:]) for key in keys]
            sparse = jnp.where(jnp.stack(kept), updates / self.density, 0)
        if self.method not in _ELECTING:
            return jnp.sum(sparse, axis=0)
        # The mean, for each entry, of the updates that have its elected sign. Zeros have no sign.
        signs = jnp.sign(sparse)
        votes = jnp.sum(sparse if self.majority_sign == "total" else signs, axis=0)
        agrees = signs == jnp.where(votes >= 0, 1, -1).astype(sparse.dtype)[None]
        count = jnp.sum(agrees, axis=0).astype(sparse.dtype)
        return jnp.sum(jnp.where(agrees, sparse, 0), axis=0) / jnp.maximum(count, 1)


def _trimmed(
    updates: Float[Array, "n *stack out in"], density: float
) -> Float[Array, "n *stack out in"]:
    """Zero all but the part `density` of each matrix's entries that is largest in magnitude."""
    *batch, outputs, inputs = updates.shape
    sizes = jnp.abs(updates).reshape(*batch, outputs * inputs)
    dropped = outputs * inputs - round(density * outputs * inputs)
    smallest_kept = jnp.sort(sizes, axis=-1)[..., dropped, None, None]
    return jnp.where(jnp.abs(updates) >= smallest_kept, updates, 0)

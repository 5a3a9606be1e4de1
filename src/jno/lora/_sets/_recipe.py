"""The methods of `combine`: the arguments and the steps of each method."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._contract import check_fraction, check_rank
from .._errors import SelectionError
from .._paths import nearest

Combination = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]

_METHODS = get_args(Combination)
EXACT = ("linear", "cat")  # cut nothing unless the matrix is too small
TRIMMING = ("ties", "magnitude_prune")  # keep the largest entries
_RANDOM = ("dare_linear", "dare_ties")  # keep random entries
_ELECTING = ("ties", "dare_ties")  # elect a sign for each entry
SPARSE = [method for method in _METHODS if method in TRIMMING + _RANDOM]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static arguments of `combine`."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str

    def check(self, *, has_key: bool) -> None:
        """**Raises:** `SelectionError` if an argument is missing or makes no sense."""
        method, sign = self.method, self.majority_sign
        if method not in _METHODS:
            near = nearest(str(method), _METHODS, n=1)[0]
            raise SelectionError(
                f"There is no method {method!r}; did you mean {near!r}? "
                f"The methods are {', '.join(_METHODS)}."
            )
        problem = ""
        if method in SPARSE and self.density is None:
            problem = f"{method!r} needs a `density`, the fraction of entries to keep, such as 0.5."
        elif self.density is not None and method not in SPARSE:
            problem = f"`density` is for {', '.join(SPARSE)}; {method!r} keeps every entry."
        elif method in _RANDOM and not has_key:
            problem = f"{method!r} drops entries at random, and needs a `key`."
        elif has_key and method not in _RANDOM:
            problem = f"`key` is for {' and '.join(_RANDOM)}; {method!r} is not random."
        elif self.rank is not None and method in EXACT:
            problem = (
                f"{method!r} is exact, so the ranks decide. For a smaller rank, use method='svd'."
            )
        elif sign not in get_args(MajoritySign):
            problem = f"`majority_sign` must be 'total' or 'frequency', but is {sign!r}."
        elif sign != "total" and method not in _ELECTING:
            names = " and ".join(_ELECTING)
            problem = f"`majority_sign` is for {names}; {method!r} elects no sign."
        if problem:
            raise SelectionError(problem)
        if self.density is not None:
            check_fraction("density", self.density)
        if self.rank is not None:
            check_rank(self.rank)

    def sparse_sum(
        self, updates: Float[Array, "n *stack out in"], keys: list[PRNGKeyArray]
    ) -> Float[Array, "*stack out in"]:
        """The sum of sparse updates. `keys` has one key per update if the method is random."""
        assert self.density is not None
        if self.method in TRIMMING:
            sparse = _trimmed(updates, self.density)
        else:  # `drop`: each entry stays with probability `density`, divided by it
            stays = [jax.random.bernoulli(key, self.density, updates.shape[1:]) for key in keys]
            sparse = jnp.where(jnp.stack(stays), updates / self.density, 0)
        return (
            self._mean_of_elected(sparse) if self.method in _ELECTING else jnp.sum(sparse, axis=0)
        )

    def _mean_of_elected(
        self, updates: Float[Array, "n *stack out in"]
    ) -> Float[Array, "*stack out in"]:
        """For each entry, the mean of the updates that have the elected sign. 0 has no sign."""
        signs = jnp.sign(updates)
        votes = jnp.sum(updates if self.majority_sign == "total" else signs, axis=0)
        agrees = signs == jnp.where(votes >= 0, 1, -1).astype(updates.dtype)[None]
        count = jnp.sum(agrees, axis=0).astype(updates.dtype)
        return jnp.sum(jnp.where(agrees, updates, 0), axis=0) / jnp.maximum(count, 1)


def _trimmed(
    updates: Float[Array, "n *stack out in"], density: float
) -> Float[Array, "n *stack out in"]:
    """Zero all but the fraction `density` of largest magnitude of each matrix's entries."""
    *batch, outputs, inputs = updates.shape
    sizes = jnp.abs(updates).reshape(*batch, outputs * inputs)
    dropped = outputs * inputs - round(density * outputs * inputs)
    smallest_to_stay = jnp.sort(sizes, axis=-1)[..., dropped, None, None]
    return jnp.where(jnp.abs(updates) >= smallest_to_stay, updates, 0)

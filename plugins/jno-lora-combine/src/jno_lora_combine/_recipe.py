"""The methods of `combine`: the arguments and the steps of each method."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import SelectionError
from jno.lora.extending import nearest
from jno.lora.parts import check_rank

from ._products import check_fraction

Combination = Literal[
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune_svd",
    "knots_ties",
    "regmean",
]
MajoritySign = Literal["total", "frequency"]

_METHODS = get_args(Combination)
EXACT = ("linear", "cat")  # cut nothing unless the matrix is too small
# Keep the largest entries; keep random entries; elect a sign for each entry.
TRIMMING = ("ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd", "knots_ties")
_RANDOM = ("dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd")
_ELECTING = ("ties", "dare_ties", "ties_svd", "dare_ties_svd", "knots_ties")
ALIGNING, BY_INPUTS = "knots_ties", "regmean"
SPARSE = [method for method in _METHODS if method in TRIMMING + _RANDOM]
# The methods that take each argument, and the arguments that these methods need.
_METHODS_WITH = {
    "density": SPARSE,
    "rank": [method for method in _METHODS if method not in EXACT],
    "key": _RANDOM,
    "majority_sign": _ELECTING,
    "statistics": (BY_INPUTS,),
    "off_diagonal": (BY_INPUTS,),
}
_REQUIRED = {
    "density": "a `density`, the fraction of entries to keep, such as 0.5",
    "key": "a `key`, because it drops entries at random",
    "statistics": "the inputs' `statistics` of each set, in a list",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static arguments of `combine`."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str
    off_diagonal: float | None = None

    def check(self, *, has_key: bool, has_statistics: bool) -> None:
        """**Raises:** `SelectionError` if an argument is missing or makes no sense."""
        if self.method not in _METHODS:
            near = nearest(str(self.method), _METHODS, n=1)[0]
            raise SelectionError(
                f"There is no method {self.method!r}; did you mean {near!r}? "
                f"The methods are {', '.join(_METHODS)}."
            )
        if self.majority_sign not in get_args(MajoritySign):
            raise SelectionError(
                f"`majority_sign` must be 'total' or 'frequency', but is {self.majority_sign!r}."
            )
        given = {
            "density": self.density is not None,
            "rank": self.rank is not None,
            "key": has_key,
            "majority_sign": self.majority_sign != "total",
            "statistics": has_statistics,
            "off_diagonal": self.off_diagonal is not None,
        }
        for name, methods in _METHODS_WITH.items():
            if given[name] and self.method not in methods:
                raise SelectionError(f"`{name}` is for {', '.join(methods)}, not {self.method!r}.")
            if name in _REQUIRED and self.method in methods and not given[name]:
                raise SelectionError(f"{self.method!r} needs {_REQUIRED[name]}.")
        if self.off_diagonal is not None:
            check_fraction("off_diagonal", self.off_diagonal)
        if self.density is not None:
            check_fraction("density", self.density)
        if self.rank is not None:
            check_rank(self.rank)

    @property
    def is_of_peft(self) -> bool:
        """Whether PEFT's law decides: signs are elected before weighting, and counts round down."""
        return self.method.endswith("_svd")

    def entries_to_keep(self, entries: int) -> int:
        """How many of the entries of a matrix `trim` keeps.

        **Raises:** `SelectionError` if it keeps none.
        """
        assert self.density is not None
        kept = self.density * entries
        number = int(kept) if self.is_of_peft else round(kept)
        if number == 0:
            raise SelectionError(
                f"The `density` {self.density} keeps no entry of a matrix of {entries:,} entries."
            )
        return number

    def aligned_sum(
        self,
        updates: Float[Array, "n *stack out in"],
        weights: Float[Array, " n"],
        rank: int,
    ) -> Float[Array, "*stack out in"]:
        """KnOTS: `U agree(trim(V_i))`, for `[U_1 ... U_n] = U [V_1 ... V_n]` with orthonormal `U`.

        - `rank`: the largest rank of all updates side by side. Further directions hold rounding.
        """
        number, wide = len(updates), jnp.concatenate(list(updates), axis=-1)
        U, S, Vt = jnp.linalg.svd(wide, full_matrices=False)
        rank = min(rank, S.shape[-1])
        V = S[..., :rank, None].astype(wide.dtype) * Vt[..., :rank, :]
        parts = jnp.stack(jnp.split(V, number, axis=-1))
        return U[..., :rank] @ self.sparse_sum(parts, weights, [])

    def sparse_sum(
        self,
        updates: Float[Array, "n *stack out in"],
        weights: Float[Array, " n"],
        keys: list[PRNGKeyArray],
    ) -> Float[Array, "*stack out in"]:
        """The weighted sum of sparse updates. A random method needs one key per update."""
        assert self.density is not None
        if self.method in TRIMMING:
            sparse = self._trimmed(updates)
        else:  # `drop`: each entry stays with probability `density`, divided by it
            stays = [jax.random.bernoulli(key, self.density, updates.shape[1:]) for key in keys]
            sparse = jnp.where(jnp.stack(stays), updates / self.density, 0)
        weighted = weights.reshape(-1, *[1] * (updates.ndim - 1)) * sparse
        if self.method not in _ELECTING:
            return jnp.sum(weighted, axis=0)
        return self._mean_of_elected(weighted, sparse if self.is_of_peft else weighted)

    def _mean_of_elected(
        self, weighted: Float[Array, "n *stack out in"], voters: Float[Array, "n *stack out in"]
    ) -> Float[Array, "*stack out in"]:
        """For each entry, the mean over the voters that have the elected sign. 0 has no sign."""
        signs = jnp.sign(voters)
        votes = jnp.sum(voters if self.majority_sign == "total" else signs, axis=0)
        agrees = signs == jnp.where(votes >= 0, 1, -1).astype(signs.dtype)[None]
        count = jnp.sum(agrees, axis=0).astype(signs.dtype)
        return jnp.sum(jnp.where(agrees, weighted, 0), axis=0) / jnp.maximum(count, 1)

    def _trimmed(self, updates: Float[Array, "n *stack out in"]) -> Float[Array, "n *stack out in"]:
        """Zero all but the largest entries of each matrix in magnitude."""
        *batch, outputs, inputs = updates.shape
        sizes = jnp.abs(updates).reshape(*batch, outputs * inputs)
        dropped = outputs * inputs - self.entries_to_keep(outputs * inputs)
        smallest_to_stay = jnp.sort(sizes, axis=-1)[..., dropped, None, None]
        return jnp.where(jnp.abs(updates) >= smallest_to_stay, updates, 0)

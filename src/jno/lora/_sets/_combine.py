"""Combine sets of adapters into one, by arithmetic on their updates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._contract import LoRAWrapper, check_fraction, check_key, check_number, check_rank
from .._errors import SelectionError
from .._paths import nearest, stable_hash
from .._sharding import on_the_mesh
from ._adapter_set import AdapterSet, LooseAdapter, listed_sets
from ._products import Factors, Triplets, check_combinable, factors_of, scale_of, widest
from ._update_report import UpdateReport, UpdateRow

Combination = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]

_EXACT = ("linear", "cat")
_TRIMMING = ("ties", "magnitude_prune")
_RANDOM = ("dare_linear", "dare_ties")
_ELECTING = ("ties", "dare_ties")
_SPARSE = (*_TRIMMING, *_RANDOM)


@overload
def combine(
    sets: Sequence[AdapterSet],
    weights: Any,
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    report: Literal[False] = False,
) -> AdapterSet: ...


@overload
def combine(
    sets: Sequence[AdapterSet],
    weights: Any,
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    report: Literal[True],
) -> tuple[AdapterSet, UpdateReport]: ...


def combine(
    sets: Sequence[AdapterSet],
    weights: Any,
    method: str = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: str = "total",
    report: bool = False,
) -> Any:
    r"""Combine several sets of adapters into one.

    All methods act on the updates `U_i = s_i B_i A_i` of a layer's matrix, with each adapter's own
    scale (most of PEFT's act on `A` and `B` separately). With weights `w_i`:

    | method | update | rank |
    |---|---|---|
    | `"linear"`, `"cat"` | `sum_i w_i U_i`, exactly | sum of the ranks, at most the matrix's |
    | `"svd"` | `sum_i w_i U_i` | `rank` |
    | `"magnitude_prune"` | `sum_i w_i trim(U_i)` | `rank` |
    | `"ties"` | `agree(trim(w_i U_i))` | `rank` |
    | `"dare_linear"` | `sum_i w_i drop(U_i)` | `rank` |
    | `"dare_ties"` | `agree(drop(w_i U_i))` | `rank` |

    `trim` keeps the part `density` of the entries of `U_i` that is largest in magnitude. `drop`
    keeps each entry with probability `density`, divided by it: its mean over all keys is `U_i`.
    `agree` elects a sign for each entry, and takes the mean of the updates that have it there. A
    singular value decomposition cuts the result to the nearest update of rank `rank`. A set without
    an adapter at a path adds zero.

    May run inside `jit`, with traced arrays and weights. Cuts call LAPACK: not for training steps.

    **Arguments:**

    - `sets`: of adapters whose update is only a product (LoRA, rsLoRA, LoRA-FA). `to_lora(model)`
        converts others.
    - `weights`: one number for each set; may be negative, and traced. `"ties"` and `"dare_ties"`
        take a mean: weights of 1 give the method of the paper.
    - `density`: in `(0, 1]`; required by the methods that make updates sparse.
    - `rank`: of the result, where the method leaves it open. By default the largest of the ranks at
        a path, and never more than a matrix allows. Zeros fill up an update that needs less.
    - `key`: for `"dare_linear"` and `"dare_ties"`. The dropped entries depend on it, on the path
        and on the position of the set.
    - `majority_sign`: for `"ties"` and `"dare_ties"`: whether `agree` elects the sign of the sum
        (`"total"`, as in the paper) or that of most updates (`"frequency"`). A draw is positive.
    - `report`: whether to return `(set, report)`.

    **Returns:** an `AdapterSet`, with the class that the first set has at a path, `alpha = rank`,
    and orthonormal rows of `A` wherever it was cut. With `report=True` also an `UpdateReport` of
    the error that the cut makes.

    **Raises:** `SelectionError` that lists every adapter whose update is not only a product, every
    path at which the layers differ, or every matrix that `density` leaves empty; or if an argument
    is missing or makes no sense.

    Papers: TIES, arXiv:2306.01708; DARE, arXiv:2311.03099.
    """
    sets = listed_sets(sets, "combine")
    weights = _listed_weights(weights, len(sets))
    recipe = _Recipe(method, density, rank, majority_sign)
    recipe.check(has_key=key is not None)
    if key is not None:
        check_key(key)
    check_combinable(sets, density if method in _TRIMMING else None)
    made: dict[str, LooseAdapter] = {}
    rows: list[UpdateRow] = []
    for path in dict.fromkeys(path for one in sets for path in one):
        present = [i for i, one in enumerate(sets) if path in one.adapters]
        first = sets[present[0]][path]
        states = [sets[i][path].state for i in present]
        scales = [scale_of(sets[i][path]) * weights[i] for i in present]
        # Two numbers that tell the key of an update from those of all others.
        numbers = [np.asarray([stable_hash(path), i], np.uint32) for i in present]
        state, error = on_the_mesh(
            states, _combined, recipe, first.wrapper, states, scales, key, numbers
        )
        new_rank = state["lora_A"].shape[-2]
        made[path] = dataclasses.replace(first, state=state, rank=new_rank, alpha=float(new_rank))
        rows.append(UpdateRow(path, first.wrapper, first.wrapper, new_rank, error))
    return (AdapterSet(made), UpdateReport(tuple(rows))) if report else AdapterSet(made)


@dataclasses.dataclass(frozen=True)
class _Recipe:
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
        elif self.rank is not None and method in _EXACT:
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
            check_fraction("density", self.density)
        if self.rank is not None:
            check_rank(self.rank)

    def sparse_sum(
        self, updates: Float[Array, "n *stack out in"], keys: list[PRNGKeyArray]
    ) -> Float[Array, "*stack out in"]:
        """The sum of sparse updates. `keys` has one for each update, if the method is random."""
        assert self.density is not None
        if self.method in _TRIMMING:
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


def _listed_weights(weights: Any, number: int) -> list[Array]:
    try:
        listed = list(weights)
    except TypeError:
        raise SelectionError(
            f"`weights` must be a list of numbers, one for each set, but is {weights!r}."
        ) from None
    for index, weight in enumerate(listed):
        check_number(f"weights[{index}]", weight)
    if len(listed) != number:
        raise SelectionError(
            f"Each set needs a weight: expected {number} weights, got {len(listed)}."
        )
    return [jnp.asarray(weight, jax.dtypes.canonicalize_dtype(float)) for weight in listed]


def _combined(
    recipe: _Recipe,
    cls: Any,
    states: list[Mapping[str, Any]],
    scales: list[Array],
    key: PRNGKeyArray | None,
    numbers: list[Any],
) -> tuple[dict[str, Array], Array]:
    """The state of the adapter that the recipe makes at one path, and the error of cutting it."""
    dtype = widest(state[name].dtype for state in states for name in ("lora_A", "lora_B"))
    # Sums and decompositions of half precision in float32.
    wide = widest([dtype, jnp.dtype(jnp.float32)])
    updates = [
        factors_of(state, scale.astype(wide), wide)
        for state, scale in zip(states, scales, strict=True)
    ]
    ranks, largest = [update.rank for update in updates], updates[0].largest_rank
    rank = sum(ranks) if recipe.method in _EXACT else recipe.rank or max(ranks)
    if recipe.method in (*_EXACT, "svd"):
        total = Factors(
            jnp.concatenate([update.A for update in updates], axis=-2),
            jnp.concatenate([update.B for update in updates], axis=-1),
        )
        if recipe.method in _EXACT and rank <= largest:
            return _state(cls, total, dtype), jnp.zeros((), wide)
        triplets = Triplets.of_product(total)
    else:
        products = jnp.stack([update.B @ update.A for update in updates])
        fold = jax.random.fold_in
        keys = [] if key is None else [fold(fold(key, path), i) for path, i in numbers]
        triplets = Triplets.of(recipe.sparse_sum(products, keys))
    rank = min(rank, largest)
    return _state(cls, triplets.cut_to(rank), dtype), triplets.lost_by_cutting(rank)


def _state(cls: type[LoRAWrapper], update: Factors, dtype: Any) -> dict[str, Array]:
    return {name: array.astype(dtype) for name, array in update.as_adapter(cls)[0].items()}

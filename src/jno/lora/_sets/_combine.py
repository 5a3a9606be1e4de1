"""Combine sets of adapters into one set, by arithmetic on their updates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._contract import LoRAWrapper, adds_up, check_key, check_number
from .._errors import SelectionError, warn
from .._paths import bullets, show_path, stable_hash
from .._sharding import on_the_mesh
from ._adapter_set import AdapterSet, LooseAdapter, listed_sets, paths_of
from ._input_shares import covariances, shares_of
from ._products import Factors, Triplets, check_combinable, factors_of, summed, weighted, widest
from ._recipe import ALIGNING, BY_INPUTS, EXACT, SPARSE, Combination, MajoritySign, Recipe
from ._sum import AdapterSum, sets_in
from ._update_report import UpdateReport, UpdateRow

if TYPE_CHECKING:
    Combined = AdapterSet
else:  # the next release refuses `report=True`, which returns a pair
    Combined = AdapterSet | tuple[AdapterSet, UpdateReport]


def combine(
    sets: Sequence[AdapterSet],
    weights: Any,
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    statistics: Sequence[Mapping[str, Mapping[str, Array]]] | None = None,
    off_diagonal: float | None = None,
    report: bool = False,
) -> Combined:
    r"""Combine several sets of adapters into one.

    All methods act on the updates `U_i = s_i B_i A_i` of a layer's matrix, with each adapter's own
    scale. With weights `w_i`:

    | method | update | rank |
    |---|---|---|
    | `"linear"`, `"cat"` | `sum_i w_i U_i`, exactly | sum of the ranks, at most the matrix's |
    | `"svd"` | `sum_i w_i U_i` | `rank` |
    | `"magnitude_prune"` | `sum_i w_i trim(U_i)` | `rank` |
    | `"ties"` | `agree(trim(w_i U_i))` | `rank` |
    | `"dare_linear"` | `sum_i w_i drop(U_i)` | `rank` |
    | `"dare_ties"` | `agree(drop(w_i U_i))` | `rank` |
    | `"ties_svd"` and further names in `_svd` | PEFT's methods of these names | `rank` |
    | `"knots_ties"` | `U agree(trim(w_i V_i))`, where `U_i = U V_i` | `rank` |
    | `"regmean"` | `sum_i w_i U_i G_i (sum_j G_j)^+` | as `"linear"`, or `rank` |

    `trim` keeps the fraction `density` of the entries of `U_i`, the largest in magnitude. `drop`
    keeps each entry with probability `density`, divided by it: its mean over all keys is `U_i`.
    `agree` elects a sign for each entry, and takes the mean of the updates that have this sign. A
    singular value decomposition cuts the result to the nearest update of rank `rank`. A set without
    an adapter at a path adds zero. PEFT's `"ties_svd"` and `"dare_ties_svd"` elect signs before
    they weight, and `trim` of PEFT's methods rounds the number of entries down. PEFT's methods
    without `_svd`, except `"cat"`, act on `A` and `B` separately; no method here does so.
    KnOTS aligns the updates first: `U` is orthonormal, and `U [V_1 ... V_n]` is the singular value
    decomposition of the updates side by side, with the singular values in `V_i`. RegMean is the
    least-squares fit to the outputs of all adapted layers on their inputs, where `G_i` is the
    covariance of a layer's inputs `E[x x^T]`, with the entries off its diagonal times
    `off_diagonal`. A set without an adapter at a path counts with its `G_i`.

    May run inside `jit`, with traced arrays and weights. Cuts call LAPACK: not for training steps.

    **Arguments:**

    - `sets`: of adapters whose update is only a product (LoRA, rsLoRA, LoRA-FA). `to_lora(model)`
        converts other adapters. `"linear"` and `"cat"` also add up adapters with a `sum_of`
        (spectral weights, bottlenecks), exactly. A sum of such adapters (`sum_adapters`) counts as
        one adapter.
    - `weights`: one number for each set; may be negative, and traced. `"ties"` and `"dare_ties"`
        take a mean: weights of 1 give the method of the paper.
    - `density`: in `(0, 1]`; required by the methods that make updates sparse.
    - `rank`: of the result, where the method leaves it open. By default the largest of the ranks at
        a path, and never more than a matrix allows. Zeros fill up an update that needs less.
    - `key`: for `"dare_linear"` and `"dare_ties"`. The dropped entries depend on it, on the path
        and on the position of the set.
    - `majority_sign`: for `"ties"` and `"dare_ties"`: whether `agree` elects the sign of the sum
        (`"total"`, as in the paper) or of most updates (`"frequency"`). A draw is positive.
    - `statistics`: for `"regmean"`: one for each set, each from its data and its merged model:
        `calibrate(merge_lora(model), batches, loss, wrappers="corda")`.
    - `off_diagonal`: for `"regmean"`, in `(0, 1]`; 0.9 by default, as in most of the paper.

    **Returns:** an `AdapterSet`, with the class that the first set has at a path, `alpha = rank`,
    and orthonormal rows of `A` wherever it was cut. `combine_with_report` also measures the cuts.

    **Raises:** `SelectionError` that lists every adapter whose update is not only a product, every
    path at which the layers differ, or every matrix that `density` leaves empty; or if an argument
    is missing or makes no sense.

    Papers: TIES, arXiv:2306.01708; DARE, arXiv:2311.03099; KnOTS, arXiv:2410.19735 (its code trims
    all layers together); RegMean, arXiv:2212.09849 (it has no weights: 1 gives its law).
    """
    if report:
        warn(
            "combine(..., report=True) will not be accepted by the next release. Call "
            "combine_with_report(...), which returns the same pair."
        )
    options: Any = {"density": density, "rank": rank, "key": key, "majority_sign": majority_sign}
    options |= {"statistics": statistics, "off_diagonal": off_diagonal}
    pair: Any = combine_with_report(sets, weights, method, **options)
    return pair if report else pair[0]


def combine_with_report(
    sets: Sequence[AdapterSet],
    weights: Any,
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    statistics: Sequence[Mapping[str, Mapping[str, Array]]] | None = None,
    off_diagonal: float | None = None,
) -> tuple[AdapterSet, UpdateReport]:
    """As `combine`, and an `UpdateReport` with the rank of each adapter and the error of its cut.

    **Arguments** and **Raises:** as `combine`.
    """
    sets = [_without_sums(adapters) for adapters in listed_sets(sets, "combine")]
    weights = _listed_weights(weights, len(sets))
    recipe = Recipe(method, density, rank, majority_sign, off_diagonal)
    recipe.check(has_key=key is not None, has_statistics=statistics is not None)
    if key is not None:
        check_key(key)
    if method not in EXACT:
        _refuse_sums(sets, method)
    check_combinable(sets, recipe)
    inputs = None if statistics is None else covariances(sets, statistics)
    adapters: dict[str, LooseAdapter] = {}
    rows: list[UpdateRow] = []
    for path in paths_of(sets):
        present = [i for i, adapter_set in enumerate(sets) if path in adapter_set.adapters]
        first = sets[present[0]][path]
        if adds_up(first.wrapper):
            total = summed(path, [sets[i][path] for i in present], [weights[i] for i in present])
            adapters[path] = total
            rows.append(UpdateRow(path, first.wrapper, first.wrapper, total.rank, jnp.zeros(())))
            continue
        states = [sets[i][path].state for i in present]
        scales = [sets[i][path].scale for i in present]
        # Path and position give each update a different key.
        numbers = [np.asarray([stable_hash(path), i], np.uint32) for i in present]
        args = recipe, first.wrapper, states, scales, [weights[i] for i in present], key, numbers
        shares = None if inputs is None else shares_of(inputs[path], present, off_diagonal)
        recipe.check_alignment(path, states)
        state, error = on_the_mesh(states, _combined, *args, shares)
        r = state["lora_A"].shape[-2]
        adapters[path] = dataclasses.replace(first, state=state, rank=r, alpha=float(r))
        rows.append(UpdateRow(path, first.wrapper, first.wrapper, r, error))
    return AdapterSet(adapters), UpdateReport(tuple(rows))


def _without_sums(adapters: AdapterSet) -> AdapterSet:
    """The set, with one adapter in the place of each sum of several adapters.

    **Raises:** `SelectionError` for a sum with a member that `combine` does not take.
    """
    joined = dict(adapters.adapters)
    for path, adapter in joined.items():
        if not issubclass(adapter.wrapper, AdapterSum):
            continue
        members = {name: s[path] for name, s in sets_in(AdapterSet({path: adapter})).items()}
        misfits = [
            f"{name!r} ({member.wrapper.__name__})"
            for name, member in members.items()
            if not (member.is_product or adds_up(member.wrapper))
        ]
        if misfits:
            raise SelectionError(
                f"The sum at {show_path(path)!r} is not a low-rank product, because of "
                f"{', '.join(misfits)}. Take the nearest product: "
                "extract_adapters(to_lora(model, rank=...)[0]). If a member changes a bias, which "
                "no product does, merge the sum and adapt the merged model: merge_lora(model)."
            )
        weights = jnp.moveaxis(jnp.asarray(adapter.state["weights"]), -1, 0)
        parts = [
            AdapterSet({path: weighted(path, *part)})
            for part in zip(members.values(), weights, strict=True)
        ]
        joined[path] = combine_with_report(parts, [1.0] * len(parts), "cat")[0][path]
    return AdapterSet(joined, adapters.shared)


def _refuse_sums(sets: Sequence[AdapterSet], method: str) -> None:
    """**Raises:** `SelectionError` for adapters with a `sum_of`, which `method` cannot cut."""
    sums = {
        f"{show_path(path)}: a {adapter.wrapper.__name__}"
        for adapters in sets
        for path, adapter in adapters.adapters.items()
        if adds_up(adapter.wrapper)
    }
    if sums:
        raise SelectionError(
            f"{method!r} changes the entries or the rank of one matrix. Adapters of several "
            f"matrices are only added up, by 'linear' or 'cat':\n{bullets(sorted(sums))}\n"
            "For a smaller rank, cut the sum: to_lora(swap_adapters(model, combined), rank=...)."
        )


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
    recipe: Recipe,
    cls: Any,
    states: list[Mapping[str, Any]],
    scales: list[Any],
    weights: list[Array],
    key: PRNGKeyArray | None,
    numbers: list[Any],
    input_shares: list[Array] | None,
) -> tuple[dict[str, Array], Array]:
    dtype = widest(state[name].dtype for state in states for name in ("lora_A", "lora_B"))
    # Half precision is summed and decomposed in float32.
    wide = widest([dtype, jnp.dtype(jnp.float32)])
    if recipe.method not in SPARSE:
        scales = [scale * weight for scale, weight in zip(scales, weights, strict=True)]
    updates = factors_of(states, scales, wide)
    if input_shares is not None:
        pairs = zip(updates, input_shares, strict=True)
        updates = [Factors(A @ share.astype(wide), B) for (A, B), share in pairs]
    ranks, largest = [update.rank for update in updates], updates[0].largest_rank
    is_exact = recipe.method in EXACT or (recipe.method == BY_INPUTS and recipe.rank is None)
    rank = sum(ranks) if is_exact else recipe.rank or max(ranks)
    if recipe.method not in SPARSE:
        A, B = zip(*updates, strict=True)
        total = Factors(jnp.concatenate(A, axis=-2), jnp.concatenate(B, axis=-1))
        if is_exact and rank <= largest:
            return _state(cls, total, dtype), jnp.zeros((), wide)
        triplets = Triplets.of_product(total)
    else:
        products = jnp.stack([update.B @ update.A for update in updates])
        fold = jax.random.fold_in
        keys = [] if key is None else [fold(fold(key, path), i) for path, i in numbers]
        shares = jnp.stack(weights).astype(wide)
        total = (
            recipe.aligned_sum(products, shares, sum(ranks))
            if recipe.method == ALIGNING
            else recipe.sparse_sum(products, shares, keys)
        )
        triplets = Triplets.of(total)
    rank = min(rank, largest)
    return _state(cls, triplets.cut_to(rank), dtype), triplets.lost_by_cutting(rank)


def _state(cls: type[LoRAWrapper], update: Factors, dtype: Any) -> dict[str, Array]:
    return {name: array.astype(dtype) for name, array in update.as_adapter(cls)[0].items()}

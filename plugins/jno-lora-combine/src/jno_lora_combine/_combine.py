"""Combine sets of adapters into one set, by arithmetic on their updates."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import AdapterSet, LooseAdapter, LoRAWrapper, MatrixAdapter, SelectionError
from jno.lora.extending import (
    adds_up,
    bullets,
    check_key,
    check_number,
    check_rank,
    nearest,
    run,
    show_path,
    stable_hash,
    widest,
)
from jno_lora_zoo import Factors

from ._checks import check_fraction, check_products, listed_sets, paths_of
from ._factors import (
    cut,
    factors_of,
    lost_by_cutting,
    side_by_side,
    triplets_of,
    triplets_of_product,
)
from ._report import UpdateReport, UpdateRow
from ._scaling import summed, weighted
from ._sum import AdapterSum, split_adapters

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
_EXACT = ("linear", "cat")  # exact unless the matrix is too small for the rank
# Keep the largest entries; keep random entries; elect a sign for each entry.
_TRIMMING = ("ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd", "knots_ties")
_RANDOM = ("dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd")
_ELECTING = ("ties", "dare_ties", "ties_svd", "dare_ties_svd", "knots_ties")
# The options, the methods that take them, and what the methods need them for.
_OPTIONS = {
    "density": (_TRIMMING + _RANDOM, "a `density`, the fraction of entries to keep, such as 0.5"),
    "rank": ([method for method in _METHODS if method not in _EXACT], None),
    "key": (_RANDOM, "a `key`, because it drops entries at random"),
    "majority_sign": (_ELECTING, None),
    "statistics": (["regmean"], "the inputs' `statistics` of each set, in a list"),
    "off_diagonal": (["regmean"], None),
}


def combine(
    sets: Sequence[AdapterSet],
    weights: Iterable[ArrayLike],
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    statistics: Sequence[Mapping[str, Mapping[str, Array]]] | None = None,
    off_diagonal: float | None = None,
) -> AdapterSet:
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
    keeps each entry with probability `density` and divides it by `density`, so that the mean over
    all keys is `U_i`. `agree` elects a sign for each entry, and takes the mean of the updates that
    have this sign. A singular value decomposition cuts the result to the nearest update of rank
    `rank`. A set without an adapter at a path adds zero. PEFT's `"ties_svd"` and `"dare_ties_svd"`
    elect signs before they weight, and `trim` of PEFT's methods rounds the number of entries down.
    PEFT's methods without `_svd`, except `"cat"`, act on `A` and `B` separately, unlike all methods
    here. KnOTS aligns the updates first: `U` is orthonormal, and `U [V_1 ... V_n]` is the singular
    value decomposition of the updates side by side, with the singular values in `V_i`. RegMean is
    the least-squares fit to the outputs of all adapted layers on their inputs, where `G_i` is the
    covariance of a layer's inputs `E[x x^T]`, whose off-diagonal entries are multiplied by
    `off_diagonal`. The `G_i` of a set counts even at a path where the set has no adapter.

    May run inside `jit`, with traced arrays and weights. Cuts call LAPACK, so do not use them in a
    training step.

    **Arguments:**

    - `sets`: of adapters whose update is only a product (LoRA, rsLoRA, LoRA-FA). `to_lora(model)`
        converts other adapters. `"linear"` and `"cat"` also add up adapters with a `sum_of`
        (spectral weights, bottlenecks), exactly. A sum of such adapters (`sum_adapters`) counts as
        one adapter.
    - `weights`: one number for each set; may be negative, and traced. `"ties"` and `"dare_ties"`
        take a mean, so weights of 1 give the method of the paper.
    - `density`: in `(0, 1]`; required by the methods that make updates sparse.
    - `rank`: of the result, where the method leaves it open. By default the largest of the ranks at
        a path, and never more than a matrix allows. An update that needs less is padded with zeros.
    - `key`: for `"dare_linear"` and `"dare_ties"`. The dropped entries depend on it, on the path
        and on the position of the set.
    - `majority_sign`: for `"ties"` and `"dare_ties"`: whether `agree` elects the sign of the sum
        (`"total"`, as in the paper) or of most updates (`"frequency"`). A draw is positive.
    - `statistics`: for `"regmean"`: one for each set, from the set's data and merged model:
        `collect_statistics(merge_lora(model), batches, loss, wrapper="corda")`.
    - `off_diagonal`: for `"regmean"`, in `(0, 1]`; 0.9 by default, as in most of the paper.

    **Returns:** an `AdapterSet`, with the class that the first set has at a path, `alpha = rank`,
    and orthonormal rows of `A` wherever it was cut. `combine_with_report` also measures the cuts.

    **Raises:** `SelectionError` that lists every adapter whose update is not only a product, or
    every path at which the layers differ; that names a matrix that `density` leaves empty; or if an
    argument is missing or makes no sense.

    Papers: TIES, arXiv:2306.01708; DARE, arXiv:2311.03099; KnOTS, arXiv:2410.19735 (its code trims
    all layers together); RegMean, arXiv:2212.09849 (without weights, which means weights of 1).
    """
    adapters, _ = combine_with_report(
        sets,
        weights,
        method,
        density=density,
        rank=rank,
        key=key,
        majority_sign=majority_sign,
        statistics=statistics,
        off_diagonal=off_diagonal,
    )
    return adapters


def combine_with_report(
    sets: Sequence[AdapterSet],
    weights: Iterable[ArrayLike],
    method: Combination = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    majority_sign: MajoritySign = "total",
    statistics: Sequence[Mapping[str, Mapping[str, Array]]] | None = None,
    off_diagonal: float | None = None,
) -> tuple[AdapterSet, UpdateReport]:
    """Like `combine`, but also return an `UpdateReport` with the rank and error of each adapter.

    **Arguments** and **Raises:** as `combine`.
    """
    sets = listed_sets(sets, "combined")
    weights = _listed_weights(weights, len(sets))
    _check_options(
        method,
        density=density,
        rank=rank,
        key=key,
        majority_sign=None if majority_sign == "total" else majority_sign,
        statistics=statistics,
        off_diagonal=off_diagonal,
    )
    sets = [_without_sums(adapters) for adapters in sets]
    _check_combinable(sets, method)
    covariances = {} if statistics is None else _covariances(sets, statistics)
    recipe = _Recipe(method, density, rank, majority_sign)
    adapters: dict[str, LooseAdapter] = {}
    rows: list[UpdateRow] = []
    for path in paths_of(sets):
        present = {i: s[path] for i, s in enumerate(sets) if path in s.adapters}
        weights_here = [weights[i] for i in present]
        first, error = next(iter(present.values())), jnp.zeros(())
        if adds_up(first.wrapper):
            adapters[path] = summed(path, [*present.values()], weights_here)
        else:
            shares = keys = None
            if covariances:
                shares = _input_shares(covariances[path], present, off_diagonal or 0.9)
            if key is not None:  # another key for each path and position
                keys = [_fold_in(key, stable_hash(path), i) for i in present]
            states = [adapter.state for adapter in present.values()]
            scales = [adapter.scale for adapter in present.values()]
            args = recipe, first.wrapper, states, scales, weights_here, keys, shares
            try:
                state, error = run(_combined, *args, beside=states)
            except SelectionError as err:
                raise SelectionError(f"{show_path(path)}: {err}") from err
            r = state["lora_A"].shape[-2]
            adapters[path] = dataclasses.replace(first, state=state, rank=r, alpha=float(r))
        rows.append(UpdateRow(path, first.wrapper, first.wrapper, adapters[path].rank, error))
    return AdapterSet(adapters), UpdateReport(tuple(rows))


def _fold_in(key: PRNGKeyArray, *numbers: int) -> PRNGKeyArray:
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def _check_options(method: str, **options: object) -> None:
    """**Raises:** `SelectionError` if an option is missing or makes no sense; `None` is missing."""
    if method not in _METHODS:
        near = nearest(str(method), _METHODS, n=1)[0]
        raise SelectionError(
            f"There is no method {method!r}; did you mean {near!r}? "
            f"The methods are {', '.join(_METHODS)}."
        )
    given = {name: option for name, option in options.items() if option is not None}
    if (sign := given.get("majority_sign", "total")) not in get_args(MajoritySign):
        raise SelectionError(f"`majority_sign` must be 'total' or 'frequency', but is {sign!r}.")
    for name, (methods, need) in _OPTIONS.items():
        if name in given and method not in methods:
            raise SelectionError(f"`{name}` is for {', '.join(methods)}, not {method!r}.")
        if need and method in methods and name not in given:
            raise SelectionError(f"{method!r} needs {need}.")
    for name in {"density", "off_diagonal"} & given.keys():
        check_fraction(name, given[name])
    if "rank" in given:
        check_rank(given["rank"])
    if "key" in given:
        check_key(given["key"])


def _without_sums(adapters: AdapterSet) -> AdapterSet:
    """The set, where each sum of several adapters is replaced by one adapter.

    **Raises:** `SelectionError` for a sum with a member that `combine` does not take.
    """
    joined = dict(adapters.adapters)
    for path, adapter in joined.items():
        if not issubclass(adapter.wrapper, AdapterSum):
            continue
        members = {name: s[path] for name, s in split_adapters(AdapterSet({path: adapter})).items()}
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


def _listed_weights(weights: Iterable[ArrayLike], number: int) -> list[Array]:
    try:
        listed = list(weights)
    except TypeError:
        listed = []
    if len(listed) != number:
        raise SelectionError(
            f"`weights` must be a list of {number} numbers, one for each set, but is {weights!r}."
        )
    for index, weight in enumerate(listed):
        check_number(f"weights[{index}]", weight)
    return [jnp.asarray(weight, jax.dtypes.canonicalize_dtype(float)) for weight in listed]


def _check_combinable(sets: Sequence[AdapterSet], method: str) -> None:
    """**Raises:** `SelectionError` that lists the adapters that cannot be combined."""
    is_exact = method in _EXACT
    check_products(sets, "added up" if is_exact else f"combined by {method!r}", is_exact)
    misfits: list[str] = []
    seen: dict[str, tuple[int, LooseAdapter]] = {}
    for index, adapters in enumerate(sets):
        for path, adapter in adapters.adapters.items():
            former, first = seen.setdefault(path, (index, adapter))
            if first.layer.kinds != adapter.layer.kinds or not _have_same_matrix(first, adapter):
                misfits.append(
                    f"{show_path(path)}: set {former} has a {first.wrapper.__name__}, set {index} "
                    f"a {adapter.wrapper.__name__}: they are for {first.layer} and "
                    f"{adapter.layer}. If these are alike, convert them with to_lora"
                )
    if misfits:
        raise SelectionError(f"These adapters cannot be combined:\n{bullets(misfits)}")


def _have_same_matrix(first: LooseAdapter, second: LooseAdapter) -> bool:
    """Whether two adapters of the same layer update the same view of its weight."""
    if first.wrapper is second.wrapper:
        return first.layer.stack_ndim == second.layer.stack_ndim
    if adds_up(first.wrapper) or adds_up(second.wrapper):
        return False  # only adapters of one class have a `sum_of`
    # Adapters of one layer kind inherit the function that reads the matrix.
    classes = MatrixAdapter.of(first.wrapper), MatrixAdapter.of(second.wrapper), MatrixAdapter
    views = [getattr(cls.matrix, "__func__", None) for cls in classes]
    return views[0] is views[1] is not views[2]


def _covariances(
    sets: Sequence[AdapterSet], statistics: Sequence[Mapping[str, Mapping[str, Array]]]
) -> dict[str, list[Array]]:
    """The covariances of the inputs of each adapted layer, one for each set.

    **Raises:** `SelectionError` unless each set has statistics that cover all adapted layers.
    """
    if isinstance(statistics, Mapping) or len(statistics) != len(sets):
        raise SelectionError(
            f"`statistics` must be a list with one item for each of the {len(sets)} sets."
        )
    paths = paths_of(sets)
    missing = [
        f"{show_path(path)}, in the statistics of set {index}"
        for path in paths
        for index, layers in enumerate(statistics)
        if "input_covariance" not in layers.get(path, {})
    ]
    if missing:
        raise SelectionError(
            f"These layers lack a covariance of their inputs:\n{bullets(missing)}\n"
            'Collect it: collect_statistics(merge_lora(model), batches, loss, wrapper="corda").'
        )
    return {path: [layers[path]["input_covariance"] for layers in statistics] for path in paths}


def _input_shares(
    covariances: Sequence[Float[Array, "*stack in in"]], sets: Iterable[int], off_diagonal: float
) -> list[Float[Array, "*stack in in"]]:
    """`G_i (sum_j G_j)^+` of these sets, which is zero in directions without inputs.

    `G_i` is a covariance whose off-diagonal entries are multiplied by `off_diagonal`.
    """
    is_diagonal = jnp.broadcast_to(
        jnp.eye(covariances[0].shape[-1], dtype=bool), covariances[0].shape
    )
    grams = [jnp.where(is_diagonal, G, off_diagonal * G) for G in covariances]
    inverse = jnp.linalg.pinv(sum(grams[1:], start=grams[0]), hermitian=True)
    return [grams[index] @ inverse for index in sets]


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """The static arguments of `combine`. No pytree, because NumPy's numbers would be traced."""

    method: str
    density: float | None
    rank: int | None
    majority_sign: str

    @property
    def is_of_peft(self) -> bool:
        """Whether PEFT's law is used: signs are elected before weighting, and counts round down."""
        return self.method.endswith("_svd")


def _combined(
    recipe: _Recipe,
    cls: type[LoRAWrapper],
    states: list[Mapping[str, Array]],
    scales: Sequence[ArrayLike],
    weights: list[Array],
    keys: list[PRNGKeyArray] | None,
    input_shares: list[Array] | None,
) -> tuple[dict[str, Array], Array]:
    """The state of the combined adapter of one layer, and the error due to its rank."""
    dtype = widest(state[name].dtype for state in states for name in ("lora_A", "lora_B"))
    # Half precision is summed and decomposed in float32.
    wide = widest([dtype, jnp.dtype(jnp.float32)])
    is_exact = recipe.method in _EXACT or (recipe.method == "regmean" and recipe.rank is None)
    if recipe.method in _TRIMMING + _RANDOM:
        updates = factors_of(states, scales, wide)
        triplets = triplets_of(_sparse_sum(recipe, updates, jnp.stack(weights).astype(wide), keys))
    else:
        scales = [scale * weight for scale, weight in zip(scales, weights, strict=True)]
        updates = factors_of(states, scales, wide)
        if input_shares is not None:
            pairs = zip(updates, input_shares, strict=True)
            updates = [Factors(A @ share.astype(wide), B) for (A, B), share in pairs]
        total = side_by_side(updates)
        if is_exact and total.rank <= total.largest_rank:
            return _state(cls, total, dtype), jnp.zeros((), wide)
        triplets = triplets_of_product(total)
    ranks = [update.rank for update in updates]
    rank = sum(ranks) if is_exact else recipe.rank or max(ranks)
    rank = min(rank, updates[0].largest_rank)
    return _state(cls, cut(triplets, rank), dtype), lost_by_cutting([triplets], rank)


def _state(cls: type[LoRAWrapper], update: Factors, dtype: DTypeLike) -> dict[str, Array]:
    return {name: array.astype(dtype) for name, array in update.as_adapter(cls)[0].items()}


def _sparse_sum(
    recipe: _Recipe,
    updates: list[Factors],
    weights: Float[Array, " n"],
    keys: list[PRNGKeyArray] | None,
) -> Float[Array, "*stack out in"]:
    """The weighted sum of the updates after most of their entries are dropped."""
    products = jnp.stack([update.B @ update.A for update in updates])
    if recipe.method != "knots_ties":
        return _sum_of_sparse(recipe, products, weights, keys)
    # KnOTS: `U agree(trim(V_i))`, for `[U_1 ... U_n] = U [V_1 ... V_n]` with orthonormal `U`.
    U, S, Vt = triplets_of(jnp.concatenate(list(products), axis=-1))
    rank = min(sum(update.rank for update in updates), S.shape[-1])  # beyond is rounding
    V = S[..., :rank, None].astype(Vt.dtype) * Vt[..., :rank, :]
    parts = jnp.stack(jnp.split(V, len(products), axis=-1))
    return U[..., :rank] @ _sum_of_sparse(recipe, parts, weights, keys)


def _sum_of_sparse(
    recipe: _Recipe,
    matrices: Float[Array, "n *stack out in"],
    weights: Float[Array, " n"],
    keys: list[PRNGKeyArray] | None,
) -> Float[Array, "*stack out in"]:
    assert recipe.density is not None
    if keys is None:
        sparse = _trimmed(matrices, recipe.density, rounds_down=recipe.is_of_peft)
    else:  # `drop`: keeps each entry with probability `density`, and divides it by `density`
        stays = [jax.random.bernoulli(key, recipe.density, matrices.shape[1:]) for key in keys]
        sparse = jnp.where(jnp.stack(stays), matrices / recipe.density, 0)
    weighted = weights.reshape(-1, *[1] * (matrices.ndim - 1)) * sparse
    if recipe.method not in _ELECTING:
        return jnp.sum(weighted, axis=0)
    # For each entry, the mean over the voters that have the elected sign. 0 has no sign.
    voters = sparse if recipe.is_of_peft else weighted
    signs = jnp.sign(voters)
    votes = jnp.sum(voters if recipe.majority_sign == "total" else signs, axis=0)
    agrees = signs == jnp.where(votes >= 0, 1, -1).astype(signs.dtype)[None]
    count = jnp.sum(agrees, axis=0).astype(signs.dtype)
    return jnp.sum(jnp.where(agrees, weighted, 0), axis=0) / jnp.maximum(count, 1)


def _trimmed(
    matrices: Float[Array, "n *stack out in"], density: float, *, rounds_down: bool
) -> Float[Array, "n *stack out in"]:
    """The matrices without all but the largest entries in magnitude.

    **Raises:** `SelectionError` if no entry stays.
    """
    *batch, outputs, inputs = matrices.shape
    entries = outputs * inputs
    kept = int(density * entries) if rounds_down else round(density * entries)
    if kept == 0:
        raise SelectionError(
            f"The `density` {density} keeps no entry of a matrix of {entries:,} entries."
        )
    sizes = jnp.abs(matrices).reshape(*batch, entries)
    smallest_to_stay = jnp.sort(sizes, axis=-1)[..., entries - kept, None, None]
    return jnp.where(jnp.abs(matrices) >= smallest_to_stay, matrices, 0)

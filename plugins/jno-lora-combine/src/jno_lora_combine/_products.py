"""Updates that are products `B A`: extract them from adapters, scale them, cut their rank."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Inexact

from jno.lora import (
    AdapterSet,
    LooseAdapter,
    LoRAWrapper,
    MatrixAdapter,
    SelectionError,
    Table,
    Term,
)
from jno.lora.extending import (
    Printed,
    adds_up,
    at_least_float32,
    bullets,
    check_number,
    over_stack,
    show_path,
    table,
    warn,
    widest,
)
from jno_lora_zoo import Factors, Triplets

# The state of an adapter that is only a product. `multiplier` is a frozen factor of its scale.
PRODUCT_STATE = {"lora_A", "lora_B", "multiplier"}
# The fraction of updates to keep, below which a report warns.
_ENOUGH = 0.9


class UpdateRow(eqx.Module):
    """One new adapter.

    - `wrapper`: its class; `former`: the class of the (first) adapter that it was made from, or of
        the layer (`extract_lora`).
    - `error`: `||new update - update|| / ||update||` in the Frobenius norm, over a whole stack.
    - `energy`: the fraction of `||update||^2` that is kept, `1 - error^2`.
    - `size`: `||update||`, of `extract_lora` alone.
    """

    path: str = eqx.field(static=True)
    former: type[eqx.Module] = eqx.field(static=True)
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    error: Float[Array, ""]
    size: Float[Array, ""] | None = None

    @property
    def energy(self) -> Float[Array, ""]:
        return 1 - self.error * self.error


class UpdateReport(eqx.Module, Printed[UpdateRow]):
    """The rank and the error of each new adapter. A pytree; prints as a table.

    - `leftovers`: the paths of changed arrays that no LoRA adapts (`extract_lora`).
    """

    rows: tuple[UpdateRow, ...]
    leftovers: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def error(self) -> Float[Array, ""]:
        """The largest error."""
        errors = [jnp.asarray(row.error, jnp.float32) for row in self.rows]
        return jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *errors]))

    @property
    def kept(self) -> float | None:
        """The fraction of the squared norm of all updates that is kept; `None` without sizes."""
        squares = [float(row.size) ** 2 for row in self.rows if row.size is not None]
        energies = [float(row.energy) for row in self.rows]
        return float(np.average(energies, weights=squares)) if any(squares) else None

    def warn_of_loss(self) -> "UpdateReport":
        """This report. Warns if less than 90 % is `kept`."""
        if self.kept is not None and self.kept < _ENOUGH:
            warn(self._in_words(self.kept))
        return self

    def _in_words(self, kept: float) -> str:
        least = min(self.rows, key=lambda row: float(row.energy))
        said = (
            f"The LoRA keeps {kept:.1%} of the change (by its squared norm), and the least, "
            f"{float(least.energy):.1%}, at {show_path(least.path)!r}."
        )
        if kept >= _ENOUGH:
            return said
        return (
            f"{said} Below {_ENOUGH:.0%}, outputs may be far from the fine-tuned model's. Give a "
            "higher `rank`, or `energy=0.95`, and measure the result."
        )

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "from", "to")]
        columns += [(name, "right") for name in ("rank", "error", "energy")]
        cells = (
            (
                show_path(row.path),
                row.former.__name__,
                row.wrapper.__name__,
                "" if row.rank is None else f"{row.rank}",
                f"{float(row.error):.1e}",
                f"{float(row.energy):.2%}",
            )
            for row in self.rows
        )
        caption = "error: ‖lost‖ / ‖update‖; energy: the fraction of ‖update‖² that is kept"
        if self.kept is not None:
            caption += f"\n{self._in_words(self.kept)}"
        if self.leftovers:
            caption += f"\nchanged, and not adapted: {', '.join(map(show_path, self.leftovers))}"
        return table(f"{len(self.rows)} adapters", columns, cells, caption, by_path=True)


def triplets_of(matrix: Inexact[Array, "*stack out in"]) -> Triplets:
    """All singular triplets of `matrix`."""
    return Triplets(*jnp.linalg.svd(matrix, full_matrices=False))


def triplets_of_product(update: Factors) -> Triplets:
    """All singular triplets of `B A`, from a `(k, k)` matrix if `k` is small."""
    if update.rank >= update.largest_rank:
        return triplets_of(update.B @ update.A)
    Q_B, R_B = jnp.linalg.qr(update.B)
    Q_A, R_A = jnp.linalg.qr(update.A.mT)
    inner = triplets_of(R_B @ R_A.mT)
    return Triplets(Q_B @ inner.U, inner.S, inner.Vt @ Q_A.mT)


def cut(triplets: Triplets, rank: int) -> Factors:
    """The nearest update of this rank (Eckart and Young), padded with zero directions if needed.

    The rows of `A` are orthonormal, so the size of the update is in `B` alone.
    """
    U, S, Vt = triplets
    B = U[..., :rank] * S[..., None, :rank].astype(U.dtype)
    return padded(Factors(Vt[..., :rank, :], B), rank)


def norm_of(matrices: Iterable[Triplets], start: int = 0) -> Float[Array, ""]:
    """The Frobenius norm of all matrices together, without their first `start` directions."""
    values = [triplets.S[..., start:].ravel() for triplets in matrices]
    dtype = widest(S.dtype for S in values)
    return jnp.linalg.norm(jnp.concatenate([S.astype(dtype) for S in values]))


def lost_by_cutting(matrices: Collection[Triplets], rank: int) -> Float[Array, ""]:
    """`||W - W_rank|| / ||W||` over all matrices, each of which may be a stack; 0 if `W` is 0."""
    norm = norm_of(matrices)
    return norm_of(matrices, rank) / jnp.where(norm > 0, norm, 1)


def rank_for(triplets: Triplets, energy: float) -> int:
    """The smallest rank that keeps the fraction `energy` of `||W||^2`, in all slices."""
    sums = np.cumsum(np.asarray(triplets.S, np.float64) ** 2, axis=-1)
    is_enough = sums >= energy * sums[..., -1:]
    return int(np.max(np.argmax(is_enough, axis=-1))) + 1


def padded(update: Factors, rank: int) -> Factors:
    """The same update with at least `rank` directions. New directions are zero."""
    stack, new = [(0, 0)] * (update.A.ndim - 2), (0, max(rank - update.rank, 0))
    A = jnp.pad(update.A, [*stack, new, (0, 0)])
    return Factors(A, jnp.pad(update.B, [*stack, (0, 0), new]))


def side_by_side(updates: Collection[Factors]) -> Factors:
    """The sum of several updates of one matrix, in their widest dtype."""
    dtype = widest(factor.dtype for update in updates for factor in update)
    A = jnp.concatenate([update.A.astype(dtype) for update in updates], axis=-2)
    return Factors(A, jnp.concatenate([update.B.astype(dtype) for update in updates], axis=-1))


def within_full_rank(update: Factors) -> Factors:
    """The same update with at most the rank of the matrix, because adapters may not have more."""
    if update.rank <= update.largest_rank:
        return update
    W = update.B @ update.A
    identity = jnp.broadcast_to(
        jnp.eye(update.largest_rank, dtype=W.dtype), (*W.shape[:-2], *[update.largest_rank] * 2)
    )
    return Factors(W, identity) if W.shape[-2] <= W.shape[-1] else Factors(identity, W)


def scale_adapters(adapters: AdapterSet, factor: ArrayLike) -> AdapterSet:
    """`adapters` with every update multiplied by `factor` (for LoRA, in `lora_B`).

    **Arguments:**

    - `adapters`: a set of adapters that `combine` takes.
    - `factor`: one real number, which may be traced. 0 gives the base's outputs.

    **Raises:** `SelectionError` that lists all adapters that `combine` does not take.
    """
    listed_sets([adapters], "scaled")
    check_number("factor", factor)
    check_products([adapters], "scaled", sums=True)
    scaled = {path: weighted(path, adapters[path], factor) for path in adapters}
    return AdapterSet(scaled, adapters.shared)


def weighted(path: str, adapter: LooseAdapter, factor: ArrayLike) -> LooseAdapter:
    """An adapter that `combine` takes, times a number, or a number for each layer of a stack."""
    if adds_up(adapter.wrapper):
        return summed(path, [adapter], [factor])
    B = jnp.asarray(adapter.state["lora_B"])
    wide = at_least_float32(B)  # half precision would round the factor itself
    factor = jnp.asarray(factor, wide.dtype)
    B = (wide * (factor[..., None, None] if factor.ndim else factor)).astype(B.dtype)
    return dataclasses.replace(adapter, state={**adapter.state, "lora_B": B})


def summed(
    path: str, adapters: Sequence[LooseAdapter], weights: Sequence[ArrayLike]
) -> LooseAdapter:
    """The weighted sum of adapters of one class with a `sum_of`.

    A weight may have the axes of a stack.

    **Raises:** `SelectionError` that names the path, if these adapters have no sum.
    """
    first = adapters[0]

    def sum_of_layer(states: list[Mapping[str, Array]], weights: list[ArrayLike]) -> Term | None:
        triples = zip(states, adapters, weights, strict=True)
        terms = [Term(state, a.rank, a.alpha, weight) for state, a, weight in triples]
        return MatrixAdapter.of(first.wrapper).sum_of(terms)

    states, ndim = [adapter.state for adapter in adapters], first.layer.stack_ndim
    if ndim:
        stack = first.layer.arrays[0][1][:ndim]
        weights = [jnp.broadcast_to(jnp.asarray(weight), stack) for weight in weights]
    try:
        total = over_stack(sum_of_layer, ndim)(states, [*weights])
    except ValueError as err:
        message = f"Could not add up the adapters at {show_path(path)!r}: {err}"
        raise SelectionError(message) from err
    return dataclasses.replace(first, state=dict(total.state), rank=total.rank, alpha=total.alpha)


def factors_of(
    states: Sequence[Mapping[str, Array]], scales: Sequence[ArrayLike], dtype: DTypeLike
) -> list[Factors]:
    """The updates of adapters with these states. The scales go into `B`."""
    updates: list[Factors] = []
    for state, scale in zip(states, scales, strict=True):
        A, B = (jnp.asarray(state[name], dtype) for name in ("lora_A", "lora_B"))
        if "multiplier" in state:  # a number for each slice of a stack
            B = B * jnp.asarray(state["multiplier"], dtype)[..., None, None]
        updates.append(Factors(A, jnp.asarray(scale, dtype) * B))
    return updates


def listed_sets(sets: object, verb: str) -> list[AdapterSet]:
    """**Raises:** `SelectionError` if `sets` is empty, or not a list of sets."""
    items = list(sets) if isinstance(sets, Iterable) else [sets]
    listed = [item for item in items if isinstance(item, AdapterSet)]
    misfits = [type(item).__name__ for item in items if not isinstance(item, AdapterSet)]
    if misfits or not listed:
        raise SelectionError(
            f"Only AdapterSets can be {verb}, in a list, but this is a list of "
            f"{misfits[0] if misfits else 'nothing'}. For a single set, give a list: [adapters]. "
            "extract_adapters(model) takes a set from a model."
        )
    return listed


def paths_of(sets: Iterable[AdapterSet]) -> list[str]:
    """The paths of all adapters in `sets`, each once."""
    return list(dict.fromkeys(path for adapters in sets for path in adapters))


def check_products(sets: Sequence[AdapterSet], done: str, sums: bool = False) -> None:
    """**Raises:** `SelectionError` that lists every adapter that is not a product.

    - `sums`: whether adapters with a `sum_of` will do as well.
    """
    lines: list[str] = []
    for index, adapters in enumerate(sets):
        place = f" in set {index}" if len(sets) > 1 else ""
        for path, adapter in adapters.adapters.items():
            if not (adapter.is_product or (sums and adds_up(adapter.wrapper))):
                arrays = ", ".join(adapter.state)
                name = adapter.wrapper.__name__
                lines.append(f"{show_path(path)}: a {name}{place}, with the arrays {arrays}")
    if lines:
        raise SelectionError(
            "Only adapters whose update is a low-rank product (LoRA, rsLoRA, LoRA-FA) can be "
            f"{done}. These adapters are different:\n{bullets(lines)}\n"
            "Convert them first, if they consist only of their update: "
            "extract_adapters(to_lora(model, rank=...)[0])."
        )


def check_fraction(name: str, fraction: object) -> None:
    """**Raises:** `SelectionError` unless `fraction` is a Python number in `(0, 1]`."""
    if not (isinstance(fraction, float | int | np.number) and 0 < fraction <= 1):
        raise SelectionError(f"`{name}` must be a Python number in (0, 1], but is {fraction!r}.")

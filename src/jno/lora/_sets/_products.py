"""Updates that are products `B A`: take them from adapters, cut their rank, scale them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from .._compute import at_least_float32
from .._contract import LoRAWrapper, Term, adds_up, check_number, over_stack
from .._errors import SelectionError, failing
from .._paths import bullets, show_path
from .._sharding import on_the_mesh
from .._shared_arrays import filler
from ._adapter_set import PRODUCT_STATE, AdapterSet, LooseAdapter, check_set, stack_of
from ._recipe import TRIMMING, Recipe


class Factors(NamedTuple):
    """The update `B A` of a matrix."""

    A: Inexact[Array, "*stack k in"]
    B: Inexact[Array, "*stack out k"]

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def largest_rank(self) -> int:
        return min(self.B.shape[-2], self.A.shape[-1])

    def padded_to(self, rank: int) -> "Factors":
        """The same update with at least `rank` directions. New directions are zero."""
        stack, new = [(0, 0)] * (self.A.ndim - 2), (0, max(rank - self.rank, 0))
        A = jnp.pad(self.A, [*stack, new, (0, 0)])
        return Factors(A, jnp.pad(self.B, [*stack, (0, 0), new]))

    def as_adapter(self, cls: type[LoRAWrapper]) -> tuple[dict[str, Array], int, float]:
        """State, rank and alpha (the rank) of an adapter of a class with a `low_rank_scale`."""
        scale = cls.low_rank_scale(self.rank, float(self.rank))
        assert scale is not None
        dtype = widest([self.A.dtype, self.B.dtype])
        state = {"lora_A": self.A.astype(dtype), "lora_B": self.B.astype(dtype) / scale}
        return state, self.rank, float(self.rank)


class Triplets(NamedTuple):
    """Singular triplets of a matrix, largest first: `U`, the values `S`, and `V` transposed."""

    U: Inexact[Array, "*stack out k"]
    S: Float[Array, "*stack k"]
    Vt: Inexact[Array, "*stack k in"]

    @classmethod
    def of(cls, matrix: Inexact[Array, "*stack out in"]) -> "Triplets":
        """All triplets of `matrix`."""
        return cls(*jnp.linalg.svd(matrix, full_matrices=False))

    @classmethod
    def of_product(cls, update: Factors) -> "Triplets":
        """All triplets of `B A`, from a `(k, k)` matrix if `k` is small."""
        if update.rank >= update.largest_rank:
            return cls.of(update.B @ update.A)
        Q_B, R_B = jnp.linalg.qr(update.B)
        Q_A, R_A = jnp.linalg.qr(update.A.mT)
        inner = cls.of(R_B @ R_A.mT)
        return cls(Q_B @ inner.U, inner.S, inner.Vt @ Q_A.mT)

    def cut_to(self, rank: int) -> Factors:
        """The nearest update of that rank (Eckart and Young), if need be with zero directions.

        The rows of `A` are orthonormal, so that `B` alone holds the size of the update.
        """
        B = self.U[..., :rank] * self.S[..., None, :rank].astype(self.U.dtype)
        return Factors(self.Vt[..., :rank, :], B).padded_to(rank)

    def lost_by_cutting(self, rank: int) -> Float[Array, ""]:
        """`||W - W_rank|| / ||W||` in the Frobenius norm, over all of a stack; 0 if `W` is 0."""
        total = jnp.sum(self.S * self.S)
        return jnp.sqrt(jnp.sum(self.S[..., rank:] ** 2) / jnp.where(total > 0, total, 1))

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps the fraction `energy` of `||W||^2`, in all slices."""
        sums = np.cumsum(np.asarray(self.S, np.float64) ** 2, axis=-1)
        is_enough = sums >= energy * sums[..., -1:]
        return int(np.max(np.argmax(is_enough, axis=-1))) + 1


def known_factors(adapter: LoRAWrapper) -> Factors | None:
    """`A` and `B` of an adapter whose update is the product `B A`; `None` for other adapters.

    The factors are float32 at least, with the axes of a stack in front.
    """
    adapter = filler(adapter)(adapter)  # a program would hold the arrays of `resolve` as constants
    update = on_the_mesh(adapter, _low_rank_update, adapter)
    return None if update is None else Factors(*update)


def _low_rank_update(adapter: LoRAWrapper) -> tuple[Array, Array] | None:
    ndim = type(adapter).stack_ndim(adapter.base)
    # Half precision would round the scale in a factor, or overflow.
    return over_stack(lambda layer: layer.low_rank_update(), ndim)(at_least_float32(adapter))


def widest(dtypes: Iterable[Any]) -> Any:
    """The first dtype of the largest size. (Strict promotion allows no mixture of dtypes.)"""
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def scale_adapters(adapters: AdapterSet, factor: Any) -> AdapterSet:
    """`adapters` with every update multiplied by `factor` (of LoRA: in `lora_B`).

    **Arguments:**

    - `adapters`: a set of adapters that `combine` takes.
    - `factor`: one real number, which may be traced. 0 gives the base's outputs.

    **Raises:** `SelectionError` that lists every other adapter.
    """
    check_set(adapters, "adapters")
    check_number("factor", factor)
    check_products([adapters], "scaled", sums=True)
    scaled: dict[str, LooseAdapter] = {}
    for path, adapter in adapters.adapters.items():
        scaled[path] = weighted(path, adapter, factor)
    return AdapterSet(scaled, adapters.shared)


def weighted(path: str, adapter: LooseAdapter, factor: Any) -> LooseAdapter:
    """An adapter that `combine` takes, times a number, or a number for each layer of a stack."""
    if adds_up(adapter.wrapper):
        return summed(path, [adapter], [factor])
    B = jnp.asarray(adapter.state["lora_B"])
    wide = at_least_float32(B)  # half precision would round the factor itself
    factor = jnp.asarray(factor, wide.dtype)
    B = (wide * (factor[..., None, None] if factor.ndim else factor)).astype(B.dtype)
    return dataclasses.replace(adapter, state={**adapter.state, "lora_B": B})


def summed(path: str, adapters: Sequence[LooseAdapter], weights: Sequence[Any]) -> LooseAdapter:
    """The weighted sum of adapters of one class with a `sum_of`.

    A weight may have the axes of a stack.

    **Raises:** `SelectionError` that names the path, if these adapters have no sum.
    """
    first = adapters[0]

    def sum_of_layer(states: list[Mapping[str, Any]], weights: list[Any]) -> Any:
        triples = zip(states, adapters, weights, strict=True)
        terms = [Term(state, a.rank, a.alpha, weight) for state, a, weight in triples]
        return first.wrapper.sum_of(terms)

    states = [adapter.state for adapter in adapters]
    if stack := stack_of(first.layer):
        weights = [jnp.broadcast_to(jnp.asarray(weight), stack) for weight in weights]
    with failing(f"add up the adapters at {show_path(path)!r}", SelectionError):
        total = over_stack(sum_of_layer, len(stack))(states, [*weights])
    return dataclasses.replace(first, state=dict(total.state), rank=total.rank, alpha=total.alpha)


def factors_of(states: Sequence[Mapping[str, Any]], scales: Any, dtype: Any) -> list[Factors]:
    """The updates of adapters with these states. The scales go into `B`."""
    updates: list[Factors] = []
    for state, scale in zip(states, scales, strict=True):
        A, B = (jnp.asarray(state[name], dtype) for name in ("lora_A", "lora_B"))
        if "multiplier" in state:  # a number for each slice of a stack
            B = B * jnp.asarray(state["multiplier"], dtype)[..., None, None]
        updates.append(Factors(A, jnp.asarray(scale, dtype) * B))
    return updates


def check_combinable(sets: Sequence[AdapterSet], recipe: Recipe) -> None:
    """**Raises:** `SelectionError` that lists the adapters that cannot be combined."""
    check_products(sets, "added up", sums=True)
    misfits: list[str] = []
    empty: dict[str, None] = {}
    seen: dict[str, tuple[int, LooseAdapter]] = {}
    for index, adapters in enumerate(sets):
        for path, adapter in adapters.adapters.items():
            if adapter.is_product and recipe.method in TRIMMING:
                entries = adapter.state["lora_B"].shape[-2] * adapter.state["lora_A"].shape[-1]
                if recipe.entries_to_keep(entries) == 0:
                    empty[f"{show_path(path)}: of {entries:,} entries"] = None
            former, first = seen.setdefault(path, (index, adapter))
            if first.layer.kinds != adapter.layer.kinds:
                misfits.append(
                    f"{show_path(path)}: set {former} is for {first.layer}, set {index} for "
                    f"{adapter.layer}"
                )
            elif not _have_same_matrix(first, adapter):
                why = (
                    "and their sum needs adapters of one class: convert them with to_lora"
                    if adds_up(first.wrapper) or adds_up(adapter.wrapper)
                    else "which may lay out the matrix differently"
                )
                misfits.append(
                    f"{show_path(path)}: set {former} has a {first.wrapper.__name__}, set {index} "
                    f"a {adapter.wrapper.__name__}, {why}"
                )
    if misfits:
        message = f"These adapters cannot be combined:\n{bullets(misfits)}"
        raise SelectionError(message)
    if empty:
        message = (
            f"The `density` {recipe.density} keeps no entry of these matrices:\n{bullets(empty)}"
        )
        raise SelectionError(message)


def check_products(sets: Sequence[AdapterSet], done: str, *, sums: bool = False) -> None:
    """**Raises:** `SelectionError` that lists every adapter that is not a product.

    - `sums`: whether adapters with a `sum_of` will do as well.
    """
    lines: list[str] = []
    for index, adapters in enumerate(sets):
        place = f" in set {index}" if len(sets) > 1 else ""
        for path, adapter in adapters.adapters.items():
            if adapter.is_product or (sums and adds_up(adapter.wrapper)):
                continue
            extra = adapter.state.keys() - PRODUCT_STATE if adapter.scale is not None else ()
            beside = f", with {', '.join(sorted(extra))} beside its product" if extra else ""
            lines.append(f"{show_path(path)}: a {adapter.wrapper.__name__}{place}{beside}")
    if lines:
        raise SelectionError(
            "Only adapters whose update is a low-rank product (LoRA, rsLoRA, LoRA-FA) can be "
            f"{done}. These adapters are different:\n{bullets(lines)}\n"
            "Convert them first, if they hold nothing beside their update: "
            "extract_adapters(to_lora(model, rank=...)[0])."
        )


def _have_same_matrix(first: LooseAdapter, second: LooseAdapter) -> bool:
    """Whether two adapters of the same layer update the same view of its weight."""
    if first.wrapper is second.wrapper:
        return first.layer.stack_ndim == second.layer.stack_ndim
    # Adapters of one layer kind inherit the function that reads the matrix.
    views = [getattr(cls.matrix, "__func__", None) for cls in (first.wrapper, second.wrapper)]
    return views[0] is views[1] is not getattr(LoRAWrapper.matrix, "__func__", None)


def is_product_class(cls: type[LoRAWrapper]) -> bool:
    """Whether the whole effect of `cls` is a product. A class that raises is left out."""
    try:
        return cls.low_rank_scale(1, 1.0) is not None
    except Exception:
        return False

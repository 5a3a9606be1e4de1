"""Plain LoRA: its classes, the arrays that it adapts, and the LoRA nearest to an update."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from jno.lora import (
    AdapterSet,
    LayerForm,
    LooseAdapter,
    LoRAWrapper,
    MatrixAdapter,
    Registry,
    SelectionError,
    WrapperError,
)
from jno.lora.extending import (
    at_least_float32,
    check_rank,
    held_dtype,
    is_traced,
    over_stack,
    path_str,
    put_around,
)
from jno_lora_zoo import Factors, Triplets

from ._checks import check_fraction
from ._factors import cut, lost_by_cutting, rank_for, triplets_of
from ._matrices import matrices_of

T = TypeVar("T")
# The update of each matrix of a layer by its name, which is empty in a layer with one matrix.
LayerUpdate = Mapping[str, Triplets]


@dataclasses.dataclass(frozen=True)
class Truncation:
    """How much of an update to keep: a rank, or a fraction of its squared norm (`energy`).

    **Raises:** `SelectionError` if both are given, or one of them makes no sense.
    """

    rank: int | None
    energy: float | None

    def __post_init__(self):
        if self.rank is not None and self.energy is not None:
            raise SelectionError("`rank` and `energy` were both given. Give only one.")
        if self.rank is not None:
            check_rank(self.rank)
        if self.energy is not None:
            check_fraction("energy", self.energy)

    @property
    def is_open(self) -> bool:
        """Whether neither is given."""
        return self.rank is None and self.energy is None

    def keeps_rank(self, rank: int) -> bool:
        """Whether an update of this rank is kept as it is."""
        return self.energy is None and (self.rank is None or rank <= self.rank)

    def rank_of(self, update: LayerUpdate) -> int:
        """The rank to keep, in all matrices: by default, of all that is not zero.

        **Raises:** `WrapperError` if the update is not finite, or must be known and is traced.
        """
        values = [triplets.S for triplets in update.values()]
        largest = max(S.shape[-1] for S in values)
        if is_traced(values):
            if self.rank is None:
                raise WrapperError(
                    "its rank depends on values, which are traced: give `rank`, or leave out `jit`"
                )
        elif not all(np.isfinite(S).all() for S in values):
            raise WrapperError("its update holds NaN or infinity, and cannot be cut to a rank")
        if self.rank is not None:
            return min(self.rank, largest)
        if self.energy is not None:
            return max(rank_for(triplets, self.energy) for triplets in update.values())
        return max(1, *(int((S > 0).sum(axis=-1).max()) for S in values))


def lora_classes(registry: Registry) -> list[type[MatrixAdapter]]:
    """The classes of plain LoRA, first for one matrix and then for several.

    Their variant is "lora", or "lora" and the kind of layer, such as "lora-embedding".
    """
    registered = (wrapper for record in registry.records() for wrapper in record.wrappers)
    named = [w.cls for w in registered if f"{w.adapter.variant}-".startswith("lora-")]
    trained = [cls for cls in named if {"lora_A", "lora_B"} <= {*cls.adapter_fields}]
    unique = dict.fromkeys((*registry.resolve("lora"), *trained))
    classes = [*map(MatrixAdapter.of, unique)]
    of_one = [cls for cls in classes if cls.low_rank_scale(1, 1.0) is not None]
    return of_one + [cls for cls in classes if has_several_matrices(cls)]


def has_several_matrices(cls: type[LoRAWrapper]) -> bool:
    """Whether a class is the plain LoRA of layers with several matrices."""
    return getattr(cls, "with_products", None) is not None


def lora_with(
    cls: type[MatrixAdapter], layer: eqx.Module, factors: Mapping[str, Factors]
) -> LoRAWrapper:
    """The plain LoRA of `cls` that adds `B A` to each matrix of `layer`, or of a stack."""
    ndim = cls.stack_ndim(layer)
    if has_several_matrices(cls):
        pairs = {name: (A, B) for name, (A, B) in factors.items()}
        with_products = cast(Any, cls).with_products
        return over_stack(with_products, ndim)(layer, pairs)
    state, rank, alpha = factors[""].as_adapter(cls)
    adapter = LooseAdapter(state, cls, rank, alpha, LayerForm.of(layer, ndim))
    return cast(LoRAWrapper, put_around(layer, AdapterSet({"": adapter})))


def nearest_lora(
    cls: type[MatrixAdapter], layer: eqx.Module, update: LayerUpdate, truncation: Truncation
) -> tuple[LoRAWrapper, Float[Array, ""]]:
    """The plain LoRA of `cls` that is nearest to an update, and the error due to its rank.

    **Raises:** as `Truncation.rank_of`.
    """
    rank = truncation.rank_of(update)
    factors = {name: cut(triplets, rank) for name, triplets in update.items()}
    return lora_with(cls, layer, factors), lost_by_cutting(update.values(), rank)


def update_between(
    cls: type[MatrixAdapter], before: eqx.Module, after: eqx.Module
) -> dict[str, Triplets]:
    """The update of each matrix from one plain layer, or stack, to another.

    Singular values that may come from rounding are zero.
    """

    def of_layer(before: eqx.Module, after: eqx.Module) -> dict[str, Triplets]:
        new = matrices_of(cls, after)
        return {name: between(W, new[name]) for name, W in matrices_of(cls, before).items()}

    def between(W: Array, V: Array) -> Triplets:
        U, S, Vt = triplets_of(V - W)
        norms = jnp.linalg.norm(W, axis=(-2, -1)) + jnp.linalg.norm(V, axis=(-2, -1))
        noise = 2 * jnp.finfo(S.dtype).eps * norms
        return Triplets(U, jnp.where(noise[..., None] >= S, 0, S), Vt)  # NaN stays NaN

    return over_stack(of_layer, cls.stack_ndim(before))(before, after)


def adapted_arrays(cls: type[MatrixAdapter], layer: eqx.Module) -> set[str]:
    """The paths of the arrays of `layer` that plain LoRA changes, found by a random update."""
    index = (0,) * cls.stack_ndim(layer)  # all layers of a stack are alike
    wide = at_least_float32(layer)
    first = jax.tree.map(lambda x: jnp.asarray(x)[index] if is_array(x) else x, wide)

    def random(W: Array) -> Factors:
        shapes = (*W.shape[:-2], 1, W.shape[-1]), (*W.shape[:-1], 1)
        return Factors(*(jax.random.normal(jax.random.key(0), s, W.dtype) for s in shapes))

    factors = {name: random(W) for name, W in matrices_of(cls, first).items()}
    return set(changed_arrays(first, lora_with(cls, first, factors).merge()))


def changed_arrays(before: object, after: object) -> list[str]:
    """The paths of the arrays whose values differ, compared in the dtypes of `before`."""
    pairs = zip(jtu.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [path_str(keys) for (keys, old), new in pairs if is_array(old) and _differ(old, new)]


def _differ(old: Array | np.ndarray, new: Array | np.ndarray) -> bool:
    return bool(jnp.any(jnp.not_equal(*in_wide_dtypes(old, new))))


def in_wide_dtypes(before: T, after: T) -> tuple[T, T]:
    """Both trees in the dtypes of the first, in float32 at least."""
    wide = at_least_float32(before)
    cast_to = lambda x, y: jnp.asarray(y, held_dtype(x)) if is_array(x) else y  # noqa: E731
    return wide, jax.tree.map(cast_to, wide, after)


def is_array(leaf: object) -> TypeGuard[Array | np.ndarray]:
    return isinstance(leaf, jax.Array | np.ndarray)

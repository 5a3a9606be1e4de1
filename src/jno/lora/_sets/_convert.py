"""Convert adapters of other kinds to plain LoRA."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from .._compute import at_least_float32
from .._contract import (
    LoRAWrapper,
    check_part,
    check_rank,
    expect_model,
    over_stack,
    refusal_of_template,
    unwrapped_layer,
)
from .._errors import SelectionError, WrapperError, reason_of
from .._paths import bullets, path_str, show_path
from .._registry import Registry, default_registry
from .._sharding import on_the_mesh, restored_layer, sharded_like
from .._tree import adapted_layers, replace_adapters
from ._low_rank import (
    Factors,
    Triplets,
    as_adapter,
    cut_to,
    known_factors,
    lost_by_cutting,
    rank_for,
    triplets_of,
    triplets_of_product,
    widest,
)
from ._update_report import UpdateReport, UpdateRow

M = TypeVar("M")


def to_lora(
    model: M,
    *,
    rank: int | None = None,
    energy: float | None = None,
    registry: Registry | None = None,
) -> tuple[M, UpdateReport]:
    """`model` with every adapter as plain LoRA around the layer as it was before adapting.

    If an update is known as a low-rank product (rsLoRA, LoRA-FA, LoRA-XS, VeRA, PiSSA, MiLoRA), its
    factors are taken, and nothing is lost if its rank is allowed. Otherwise a singular value
    decomposition cuts the update `merge(W) - W`. (Both in float32 at least.) A stack of layers gets
    one rank. Plain LoRA of an allowed rank stays as it is.

    **Arguments:**

    - `model`: an adapted model, not traced.
    - `rank`: the largest rank to keep.
    - `energy`: in `(0, 1]`: the smallest rank that keeps this part of the squared Frobenius norm of
        the update. The error is then at most `sqrt(1 - energy)`. Without `rank` and `energy`, every
        update must be a product, and is kept whole: PiSSA and MiLoRA give twice their rank.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the model, and an `UpdateReport` with the rank and the error of each layer. Print
    it for a table.

    **Raises:** `SelectionError` if an argument makes no sense (such as a `Net` for the model);
    `WrapperError` that lists every adapter that needs a rank, cannot be merged, has an update with
    NaN or infinity that would have to be cut, is on a layer that plain LoRA does not fit, or
    changes more of its layer than the matrix that LoRA adds to; `PluginError` without plain LoRA
    (the zoo).
    """
    expect_model(model, "to_lora")
    if rank is not None and energy is not None:
        raise SelectionError("`rank` and `energy` were both given. Give one of them.")
    if rank is not None:
        check_rank(rank)
    if energy is not None:
        check_part("energy", energy)
    adapted = list(adapted_layers(model))
    if not adapted:
        return model, UpdateReport(())
    classes = _plain_classes(default_registry(registry))
    converted: list[LoRAWrapper] = []
    rows: list[UpdateRow] = []
    problems: list[str] = []
    for path, node in adapted:
        former = type(node)
        try:
            made, error = _converted(node, classes, rank, energy)
        except Exception as err:  # a constructor or a merge may raise anything
            problems.append(f"{show_path(path)} ({former.__name__}): {reason_of(err)}")
            continue
        converted.append(made)
        rows.append(UpdateRow(path, former, type(made), made.rank, error))
    if problems:
        raise WrapperError(
            f"Not every adapter can be converted to plain LoRA like this:\n{bullets(problems)}"
        )
    return replace_adapters(model, converted), UpdateReport(tuple(rows))


def _converted(
    adapter: LoRAWrapper,
    classes: tuple[type[LoRAWrapper], ...],
    rank: int | None,
    energy: float | None,
) -> tuple[LoRAWrapper, Array]:
    """Plain LoRA with the update of `adapter`, and the error that its rank makes."""
    is_plain = type(adapter) in classes and _is_product(type(adapter))
    if is_plain and energy is None and (rank is None or adapter.rank <= rank):
        return adapter, jnp.zeros(())
    template = refusal_of_template(adapter, "Give the model itself.")
    if template:
        raise WrapperError(template)
    layer = sharded_like(on_the_mesh(adapter, unwrapped_layer, adapter), adapter.base)
    cls = next((cls for cls in classes if cls.applies_to(layer) and _is_product(cls)), None)
    if cls is None:
        raise WrapperError(f"no plain LoRA with one matrix is for a {type(layer).__name__}")
    known = on_the_mesh(adapter, known_factors, adapter)
    if known is not None:
        dtype = widest([known.A.dtype, known.B.dtype])
        if rank is None and energy is None:
            rank = min(known.rank, known.largest_rank)
        if rank is not None and known.rank <= min(rank, known.largest_rank):
            return _around(cls, layer, known, dtype), jnp.zeros(())
        triplets = on_the_mesh(adapter, triplets_of_product, known)
    else:
        if rank is None and energy is None:
            raise WrapperError(
                "its update is not known as a low-rank product; say how much of it to keep, by "
                "`rank=` or by `energy=0.99`"
            )
        triplets, not_held = on_the_mesh(adapter, _triplets, cls, adapter)
        _refuse_more(layer, not_held)
        dtype = triplets.S.dtype
    if not isinstance(triplets.S, Tracer) and not np.isfinite(np.asarray(triplets.S)).all():
        raise WrapperError("its update holds NaN or infinity, and cannot be cut to a rank")
    if energy is not None:
        rank = rank_for(triplets.S, energy)
    assert rank is not None
    rank = min(rank, triplets.S.shape[-1])
    return _around(cls, layer, cut_to(triplets, rank), dtype), lost_by_cutting(triplets.S, rank)


def _around(cls: type[LoRAWrapper], layer: Any, update: Factors, dtype: Any) -> LoRAWrapper:
    return restored_layer(cls, layer, *as_adapter(cls, update, dtype))


def _triplets(cls: type[LoRAWrapper], adapter: LoRAWrapper) -> tuple[Triplets, Bool[Array, "..."]]:
    """The update of the matrix; and for each floating array of the layer, whether LoRA misses it.

    LoRA misses an array that the adapter changes, and that LoRA with the whole update does not.
    """

    def one(adapter: LoRAWrapper) -> tuple[Triplets, Array]:
        wide: Any = at_least_float32(adapter)
        layer, merged = wide.unwrap(), wide.merge()
        before, after = cls.matrix(layer), cls.matrix(merged)
        assert before is not None and after is not None
        update = after - before
        outputs, inputs = update.shape
        identity = jnp.eye(min(outputs, inputs), dtype=update.dtype)
        whole = Factors(update, identity) if outputs < inputs else Factors(identity, update)
        held = cls.from_state(layer, *as_adapter(cls, whole, update.dtype)).merge()
        trees = [eqx.filter(tree, eqx.is_inexact_array) for tree in (layer, merged, held)]
        flags = jax.tree.map(lambda w, m, h: jnp.any(m != w) & ~jnp.any(h != w), *trees)
        U, sizes, Vt = triplets_of(update)
        # The rounding of the two matrices can make values of this size.
        noise = jnp.finfo(sizes.dtype).eps * jnp.linalg.norm(before)
        sizes = jnp.where(sizes <= noise, 0, sizes)  # NaN stays NaN
        return Triplets(U, sizes, Vt), jnp.stack(jax.tree.leaves(flags))

    return over_stack(one, type(adapter).stack_ndim(adapter.base))(adapter)


def _refuse_more(layer: Any, not_held: Bool[Array, "*stack arrays"]) -> None:
    found = jtu.tree_leaves_with_path(eqx.filter(layer, eqx.is_inexact_array))
    flags = np.any(np.asarray(not_held), axis=tuple(range(not_held.ndim - 1)))
    names = [path_str(keys) for (keys, _), flag in zip(found, flags, strict=True) if flag]
    if names:
        raise WrapperError(
            f"it also changes {', '.join(names)}, which LoRA leaves as it is; merge it instead"
        )


def _plain_classes(registry: Registry) -> tuple[type[LoRAWrapper], ...]:
    """Plain LoRA, for layers and for layers with a norm around them."""
    classes = registry.resolve("lora")
    try:
        return (*classes, *registry.resolve("lora-in-norm"))
    except SelectionError:  # a registry may hold no such class
        return classes


def _is_product(cls: type[LoRAWrapper]) -> bool:
    return cls.low_rank_scale(1, 1.0) is not None

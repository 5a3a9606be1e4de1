"""Convert adapters of other kinds to plain LoRA."""

import contextlib
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from .._compute import at_least_float32
from .._contract import (
    LoRAWrapper,
    check_part,
    check_rank,
    expect_model,
    is_traced,
    over_stack,
    refusal_of_template,
)
from .._errors import SelectionError, WrapperError, reason_of
from .._merge import plain_layer
from .._paths import bullets, path_str, show_path
from .._registry import Registry, default_registry
from .._sharding import on_the_mesh, restored_layer
from .._shared_arrays import filler
from .._tree import holds_adapters, map_adapters
from ._products import PRODUCT_STATE, Factors, Triplets, known_factors
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

    The factors of an update that is known as a product (that of an adapter with a
    `low_rank_update`) are taken, and nothing is lost if its rank is allowed. Otherwise a singular
    value decomposition cuts the update `merge(W) - W`. (Both in float32 at least.) A stack of
    layers gets one rank. Plain LoRA of an allowed rank stays as it is.

    **Arguments:**

    - `model`: an adapted model, not traced.
    - `rank`: the largest rank to keep.
    - `energy`: in `(0, 1]`: the smallest rank that keeps this part of the squared Frobenius norm of
        the update. The error is then at most `sqrt(1 - energy)`. Without `rank` and `energy`, every
        update must be a product, and is kept whole: PiSSA, MiLoRA and OLoRA give twice their rank.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the model, and an `UpdateReport` with the rank and the error of each layer.

    **Raises:** `SelectionError` if an argument makes no sense; `WrapperError` that lists every
    adapter that needs a rank, cannot be merged, has an update with NaN or infinity to cut, is on a
    layer that plain LoRA does not fit, or changes more of its layer than the matrix that LoRA adds
    to; `PluginError` without plain LoRA (the zoo).
    """
    expect_model(model, "to_lora")
    if rank is not None and energy is not None:
        raise SelectionError("`rank` and `energy` were both given. Give one of them.")
    if rank is not None:
        check_rank(rank)
    if energy is not None:
        check_part("energy", energy)
    if not holds_adapters(model):
        return model, UpdateReport(())
    registry = default_registry(registry)
    named = registry.resolve("lora")
    for variant in ("lora-in-norm", "lora-embedding", "lora-recurrent"):
        with contextlib.suppress(SelectionError):  # a registry may hold no such class
            named += registry.resolve(variant)
    classes = tuple(cls for cls in named if cls.low_rank_scale(1, 1.0) is not None)
    rows: list[UpdateRow] = []
    problems: list[str] = []

    fill = filler(model)

    def convert(path: str, adapter: LoRAWrapper) -> Any:
        former = type(adapter)
        try:
            made, error = _converted(fill(adapter), classes, rank, energy)
        except Exception as err:  # a constructor or a merge may raise anything
            problems.append(f"{show_path(path)} ({former.__name__}): {reason_of(err)}")
            return adapter
        rows.append(UpdateRow(path, former, type(made), made.rank, error))
        return made

    converted = map_adapters(convert, model)
    if problems:
        raise WrapperError(
            f"Not every adapter can be converted to plain LoRA like this:\n{bullets(problems)}"
        )
    return converted, UpdateReport(tuple(rows))


def _converted(
    adapter: LoRAWrapper,
    classes: tuple[type[LoRAWrapper], ...],
    rank: int | None,
    energy: float | None,
) -> tuple[LoRAWrapper, Array]:
    """Plain LoRA with the update of `adapter`, and the error that its rank makes."""
    if type(adapter) in classes:
        if others := sorted(adapter.state().keys() - PRODUCT_STATE):
            raise WrapperError(f"it also trains {', '.join(others)}; merge it instead")
        if energy is None and (rank is None or adapter.rank <= rank):
            return adapter, jnp.zeros(())
    if template := refusal_of_template(adapter, "Give the model itself."):
        raise WrapperError(template)
    layer = plain_layer(adapter)
    cls = next((cls for cls in classes if cls.applies_to(layer)), None)
    if cls is None:
        raise WrapperError(f"no plain LoRA with one matrix is for a {type(layer).__name__}")
    known = known_factors(adapter)
    if known is not None:
        if energy is None:
            rank = min(known.largest_rank, known.rank if rank is None else rank)
            if known.rank <= rank:
                return restored_layer(cls, layer, *known.as_adapter(cls)), jnp.zeros(())
        triplets = on_the_mesh(adapter, Triplets.of_product, known)
    elif rank is None and energy is None:
        raise WrapperError(
            "its update is not known as a low-rank product; say how much of it to keep, by "
            "`rank=` or by `energy=0.99`"
        )
    else:
        triplets, missed = on_the_mesh(adapter, _triplets, cls, adapter)
        names = [path_str(keys) for keys, flag in jtu.tree_leaves_with_path(missed) if np.any(flag)]
        if names:
            raise WrapperError(
                f"it also changes {', '.join(names)}, which LoRA leaves as it is; merge it instead"
            )
    if not is_traced(triplets.S) and not np.isfinite(np.asarray(triplets.S)).all():
        raise WrapperError("its update holds NaN or infinity, and cannot be cut to a rank")
    if energy is not None:
        rank = triplets.rank_for(energy)
    assert rank is not None
    update = triplets.cut_to(min(rank, triplets.S.shape[-1]))
    return restored_layer(cls, layer, *update.as_adapter(cls)), triplets.lost_by_cutting(rank)


def _triplets(cls: type[LoRAWrapper], adapter: LoRAWrapper) -> tuple[Triplets, Any]:
    """The update of the matrix; and for each floating array of the layer, whether LoRA misses it.

    LoRA misses an array that the adapter changes, and that LoRA with the whole update does not.
    """

    def one(adapter: LoRAWrapper) -> tuple[Triplets, Any]:
        wide: Any = at_least_float32(adapter)
        layer, merged = wide.unwrap(), wide.merge()
        before, after = cls.matrix(layer), cls.matrix(merged)
        assert before is not None and after is not None
        update = after - before
        outputs, inputs = update.shape
        identity = jnp.eye(min(outputs, inputs), dtype=update.dtype)
        whole = Factors(update, identity) if outputs < inputs else Factors(identity, update)
        held = cls.from_state(layer, *whole.as_adapter(cls)).merge()
        trees = [eqx.filter(tree, eqx.is_inexact_array) for tree in (layer, merged, held)]
        missed = jax.tree.map(lambda w, m, h: jnp.any(m != w) & ~jnp.any(h != w), *trees)
        U, sizes, Vt = Triplets.of(update)
        # The rounding of the two matrices can make values of this size.
        noise = jnp.finfo(update.dtype).eps * jnp.linalg.norm(before)
        sizes = jnp.where(sizes <= noise, 0, sizes)  # NaN stays NaN
        return Triplets(U, sizes, Vt), missed

    return over_stack(one, type(adapter).stack_ndim(adapter.base))(adapter)

"""Adapters of other kinds made into plain LoRA."""

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
    expect_model,
    is_wrapper,
    over_stack,
    unwrapped_layer,
    why,
    without_values,
)
from .._errors import SelectionError, WrapperError
from .._paths import bullets, path_str, show_path
from .._registry import Registry, default_registry
from .._sharding import on_the_mesh, restored_layer, sharded_like
from ._low_rank import (
    Factors,
    Triplets,
    as_adapter,
    check_part,
    check_rank,
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

    The update of an adapter that is a low-rank product (rsLoRA, LoRA-FA, LoRA-XS, VeRA, PiSSA,
    MiLoRA) is taken as it is, so that nothing is lost if its rank is allowed. Otherwise the update
    `merge(W) - W` is cut by a singular value decomposition. (Both in float32 at least.) A stack of
    layers gets one rank. What is plain LoRA already, of a rank that is allowed, stays as it is.

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
    `WrapperError` that lists every adapter that needs a rank, cannot be merged, holds NaN or
    infinity in what is cut, is on a layer that no plain LoRA is for, or changes more of its layer
    than the matrix that LoRA adds to; `PluginError` without plain LoRA (the zoo).
    """
    expect_model(model, "to_lora")
    _check(rank, energy)
    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_wrapper)
    if not any(is_wrapper(node) for _, node in nodes):
        return model, UpdateReport(())
    classes = _plain_classes(default_registry(registry))
    converted: list[Any] = []
    rows: list[UpdateRow] = []
    problems: list[str] = []
    for keys, node in nodes:
        if not is_wrapper(node):
            converted.append(node)
            continue
        path, former = path_str(keys), type(node)
        try:
            wrapper, error = _converted(node, classes, rank, energy)
        except Exception as err:
            # A constructor or a merge may raise anything.
            reason = why(err, node, "Give the model itself.")
            problems.append(f"{show_path(path)} ({former.__name__}): {reason}")
            continue
        converted.append(wrapper)
        rows.append(UpdateRow(path, former, type(wrapper), wrapper.rank, error))
    if problems:
        raise WrapperError(
            f"Not every adapter can be made into plain LoRA like this:\n{bullets(problems)}"
        )
    return jtu.tree_unflatten(treedef, converted), UpdateReport(tuple(rows))


def _converted(
    wrapper: LoRAWrapper,
    classes: tuple[type[LoRAWrapper], ...],
    rank: int | None,
    energy: float | None,
) -> tuple[LoRAWrapper, Array]:
    is_plain = type(wrapper) in classes and _is_product(type(wrapper))
    if is_plain and energy is None and (rank is None or wrapper.rank <= rank):
        return wrapper, jnp.zeros(())
    layer = sharded_like(on_the_mesh(wrapper, unwrapped_layer, wrapper), wrapper.base)
    template = without_values(wrapper, "Give the model itself.")
    if template:
        raise WrapperError(template)
    cls = next((cls for cls in classes if cls.applies_to(layer) and _is_product(cls)), None)
    if cls is None:
        raise WrapperError(f"no plain LoRA with one matrix is for a {type(layer).__name__}")
    known = on_the_mesh(wrapper, known_factors, wrapper)
    if known is not None:
        k, dtype = known.A.shape[-2], widest([known.A.dtype, known.B.dtype])
        if rank is None and energy is None:
            rank = min(k, known.smaller_side)
        if rank is not None and k <= min(rank, known.smaller_side):
            return _around(cls, layer, known, dtype), jnp.zeros(())
        triplets = on_the_mesh(wrapper, triplets_of_product, known)
    else:
        if rank is None and energy is None:
            raise WrapperError(
                "its update is no low-rank product; say how much of it to keep, by `rank=` or by "
                "`energy=0.99`"
            )
        triplets, not_held = on_the_mesh(wrapper, _triplets, cls, wrapper)
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


def _triplets(cls: type[LoRAWrapper], wrapper: LoRAWrapper) -> tuple[Triplets, Bool[Array, "..."]]:
    """The update of the matrix; and for each floating array of the layer whether more changes it.

    That is so if the adapter changes the array, and LoRA with the whole update in it does not.
    """

    def one(wrapper: LoRAWrapper) -> tuple[Triplets, Array]:
        wide: Any = at_least_float32(wrapper)
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
        # What the rounding of the two matrices can have made is no update.
        noise = jnp.finfo(sizes.dtype).eps * jnp.linalg.norm(before)
        sizes = jnp.where(sizes <= noise, 0, sizes)  # what is NaN stays NaN
        return Triplets(U, sizes, Vt), jnp.stack(jax.tree.leaves(flags))

    return over_stack(one, type(wrapper).stack_ndim(wrapper.base))(wrapper)


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
    except SelectionError:  # not every collection of adapters has one
        return classes


def _is_product(cls: type[LoRAWrapper]) -> bool:
    return cls.low_rank_scale(1, 1.0) is not None


def _check(rank: int | None, energy: float | None) -> None:
    if rank is not None and energy is not None:
        raise SelectionError("`rank` and `energy` were both given. Give one of them.")
    check_rank(rank)
    check_part("energy", energy)

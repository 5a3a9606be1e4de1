"""Convert adapters to plain LoRA, and drop the directions whose gates are closed."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jno.lora import JnoLoraError, LoRAWrapper, MatrixAdapter, Registry, WrapperError, unwrap_lora
from jno.lora.extending import (
    adapted_layers,
    at_least_float32,
    bullets,
    default_registry,
    expect_model,
    filler,
    map_adapters,
    over_stack,
    refusal_of_template,
    run,
    safely_applies,
    show_path,
    warn,
)
from jno_lora_zoo import Factors, known_factors

from ._factors import triplets_of_product
from ._plain_lora import (
    Truncation,
    adapted_arrays,
    changed_arrays,
    has_several_matrices,
    lora_classes,
    lora_with,
    nearest_lora,
    update_between,
)
from ._report import UpdateReport, UpdateRow

M = TypeVar("M")
_PRODUCT_STATE = {"lora_A", "lora_B", "multiplier"}  # `multiplier` is a frozen factor of the scale
_SAY_HOW_MUCH = (
    "its update is not known as a low-rank product; say how much of it to keep, by `rank=` or by "
    "`energy=0.99`"
)


def to_lora(
    model: M,
    *,
    rank: int | None = None,
    energy: float | None = None,
    registry: Registry | None = None,
) -> tuple[M, UpdateReport]:
    """Convert every adapter of `model` to plain LoRA around the layer as it was before adapting.

    An adapter of several matrices, such as spectral weights, becomes the LoRA for such layers.

    If an adapter only adds a product (`low_rank_form`), its factors are used, without loss if their
    rank is allowed. Otherwise a singular value decomposition cuts the update `merge(W) - W`. (Both
    in float32 at least.) A stack of layers gets one rank. Plain LoRA of an allowed rank is
    unchanged.

    **Arguments:**

    - `model`: an adapted model, not traced.
    - `rank`: the largest rank to keep.
    - `energy`: in `(0, 1]`: take the smallest rank that keeps this fraction of the update's squared
        Frobenius norm. The error is then at most `sqrt(1 - energy)`. Without `rank` and `energy`,
        every update must be a product, whose rank is kept (PiSSA, MiLoRA, OLoRA: twice the rank of
        the adapter).
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the model, and an `UpdateReport` with the rank and the error of each layer.

    **Raises:** `SelectionError` if an argument makes no sense; `WrapperError` that lists every
    adapter that needs a rank, cannot be merged, has an update with NaN or infinity to cut, is on a
    layer that plain LoRA does not fit, or changes more of its layer than the matrix that LoRA adds
    to; `PluginError` without plain LoRA (the zoo).
    """
    expect_model(model, "to_lora")
    truncation = Truncation(rank, energy)
    if not any(adapted_layers(model)):
        return model, UpdateReport(())
    classes = lora_classes(default_registry(registry))
    rows: list[UpdateRow] = []
    problems: list[str] = []
    fill = filler(model)

    def convert(path: str, adapter: LoRAWrapper) -> LoRAWrapper:
        try:
            lora, error = _converted(fill(adapter), classes, truncation)
        except Exception as err:  # a constructor or a merge may raise anything
            kind = "" if isinstance(err, JnoLoraError) else f"{type(err).__name__}: "
            problems.append(f"{show_path(path)} ({type(adapter).__name__}): {kind}{err}")
            return adapter
        rows.append(UpdateRow(path, type(adapter), type(lora), lora.rank, error))
        return lora

    converted = map_adapters(convert, model)
    if problems:
        raise WrapperError(
            f"Not every adapter can be converted to plain LoRA like this:\n{bullets(problems)}"
        )
    return converted, UpdateReport(tuple(rows))


def _converted(
    adapter: LoRAWrapper, classes: list[type[MatrixAdapter]], truncation: Truncation
) -> tuple[LoRAWrapper, Float[Array, ""]]:
    """Plain LoRA with the update of `adapter`, and the error due to its rank."""
    if _is_plain_lora(adapter, classes) and truncation.keeps_rank(adapter.rank):
        return adapter, jnp.zeros(())
    if refusal := refusal_of_template(adapter, "Give the model itself"):
        raise WrapperError(refusal)
    layer = unwrap_lora(adapter)
    cls = _class_for(adapter, layer, classes)
    factors = None if has_several_matrices(cls) else known_factors(adapter)
    if factors is not None:
        return _cut_product(cls, layer, factors, truncation)
    if not type(adapter).mergeable:
        raise WrapperError("it cannot be merged, so its update is not a low-rank product")
    if truncation.is_open and not has_several_matrices(cls):
        raise WrapperError(_SAY_HOW_MUCH)
    before, after = run(_plain_and_merged, adapter)
    adapted = adapted_arrays(cls, before)
    if missed := [path for path in changed_arrays(before, after) if path not in adapted]:
        raise WrapperError(
            f"it also changes {', '.join(missed)}, which LoRA leaves as it is; merge it instead"
        )
    update = run(update_between, cls, before, after)
    if truncation.is_open and truncation.rank_of(update) > (adapter.rank or 0):
        raise WrapperError(_SAY_HOW_MUCH)
    return nearest_lora(cls, layer, update, truncation)


def _is_plain_lora(adapter: LoRAWrapper, classes: list[type[MatrixAdapter]]) -> bool:
    """**Raises:** `WrapperError` for plain LoRA of one matrix that trains more than its factors."""
    if has_several_matrices(type(adapter)):
        return True
    if type(adapter) not in classes:
        return False
    if extra := adapter.state().keys() - _PRODUCT_STATE:
        raise WrapperError(f"it also trains {', '.join(sorted(extra))}; merge it instead")
    return True


def _class_for(
    adapter: LoRAWrapper, layer: eqx.Module, classes: list[type[MatrixAdapter]]
) -> type[MatrixAdapter]:
    """The first class of plain LoRA for the matrices of `layer` that `adapter` updates."""
    own = MatrixAdapter.of(type(adapter))
    if has_several_matrices(own):
        return own
    # A class for several matrices may fit a layer of whose matrices the adapter updates the mean.
    expected = _shapes(own, layer)
    for cls in classes:
        if safely_applies(cls, layer) and (not expected or _shapes(cls, layer) in ({}, expected)):
            return cls
    raise WrapperError(
        f"no plain LoRA of the registry is for a {type(layer).__name__}: register a subclass "
        "of a LoRA (for spectral weights, of LoRASpectral with the same `mode_weights`). "
        "Adapters of one class with a `sum_of` need no conversion to be combined"
    )


def _shapes(cls: type[MatrixAdapter], layer: eqx.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the several matrices that `cls` updates; empty if it updates only one."""
    matrices = eqx.filter_eval_shape(over_stack(cls.matrices, cls.stack_ndim(layer)), layer)
    return {name: W.shape for name, W in matrices.items()}


def _cut_product(
    cls: type[MatrixAdapter], layer: eqx.Module, update: Factors, truncation: Truncation
) -> tuple[LoRAWrapper, Float[Array, ""]]:
    """Plain LoRA with an update that is known as a product."""
    if truncation.keeps_rank(update.rank) and update.rank <= update.largest_rank:
        return lora_with(cls, layer, {"": update}), jnp.zeros(())
    if truncation.is_open:
        truncation = Truncation(update.largest_rank, None)
    triplets = run(triplets_of_product, update)
    return nearest_lora(cls, layer, {"": triplets}, truncation)


def _plain_and_merged(adapter: LoRAWrapper) -> tuple[eqx.Module, eqx.Module]:
    """The layer before adapting and the merged layer, in float32 at least."""

    def of_layer(adapter: LoRAWrapper) -> tuple[eqx.Module, eqx.Module]:
        return adapter.unwrap(), adapter.merge()

    wide = at_least_float32(adapter)
    return over_stack(of_layer, type(adapter).stack_ndim(adapter.base))(wide)


def shrink(model: M, *, registry: Registry | None = None) -> M:
    """Turn each adapter of `model` with a `rank_gate` into plain LoRA without closed directions.

    Outputs change only by rounding. A layer whose gates are all zero becomes the plain layer. A
    stack of layers gets the largest rank among its layers. Other adapters do not change. For a
    `Net`: `Net(shrink(net.module))`.

    **Arguments:**

    - `model`: an adapted model, not traced because the ranks determine shapes.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Raises:** `WrapperError` that lists every adapter with a `rank_gate` whose update is not known
    as a product (`low_rank_form`); `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "shrink")
    gated = map_adapters(lambda _, a: a if _gate_of(a) else None, model)
    gates = {path: getattr(a, _gate_of(a) or "") for path, a in adapted_layers(gated)}
    is_open = {path: any(map(np.any, jax.tree.leaves(gate))) for path, gate in gates.items()}
    converted, _ = to_lora(gated, registry=registry)
    if is_open and not any(is_open.values()):
        warn(
            "Every gate is zero, so no adapter is left. AdaLoRA's gates start at zero: call shrink "
            "when training is done."
        )

    def shrunk(path: str, adapter: LoRAWrapper, lora: LoRAWrapper | None) -> eqx.Module:
        if lora is None:
            return adapter
        return _without_zeros(lora) if is_open[path] else unwrap_lora(lora)

    return map_adapters(shrunk, model, converted)


def _gate_of(adapter: LoRAWrapper) -> str | None:
    return MatrixAdapter.of(type(adapter)).rank_gate


def _without_zeros(adapter: LoRAWrapper) -> eqx.Module:
    """Plain LoRA without the directions that are zero; the plain layer if all of them are."""
    cls = MatrixAdapter.of(type(adapter))
    if has_several_matrices(cls):  # already cut to the rank needed
        return adapter
    factors, layer = known_factors(adapter), unwrap_lora(adapter)
    assert factors is not None
    is_nonzero = np.any(factors.A != 0, axis=-1) & np.any(factors.B != 0, axis=-2)
    rank = int(is_nonzero.sum(axis=-1).max())
    if rank == 0:
        return layer
    # A stable sort puts the nonzero directions first, in their order.
    nonzero = np.argsort(~is_nonzero, axis=-1, kind="stable")[..., :rank]
    A = jnp.take_along_axis(factors.A, nonzero[..., :, None], axis=-2)
    B = jnp.take_along_axis(factors.B, nonzero[..., None, :], axis=-1)
    return lora_with(cls, layer, {"": Factors(A, B)})

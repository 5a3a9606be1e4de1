"""Smaller adapters: plain LoRA without the directions that a controller has closed."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import LoRAWrapper, MatrixAdapter, Registry, SelectionError, unwrap_lora
from jno.lora.extending import adapted_layers, expect_model, known_factors, map_adapters, warn
from jno.lora.parts import Factors, is_traced

from ._convert import has_products, lora_around, to_lora

M = TypeVar("M")


def shrink(model: M, *, registry: Registry | None = None) -> M:
    """`model` with each adapter that has a `rank_gate` as plain LoRA, without closed directions.

    Outputs change only by rounding. A layer whose gates are all zero becomes the plain layer. A
    stack of layers gets the largest rank among its layers. Other adapters stay as they are. For a
    `Net`: `Net(shrink(net.module))`.

    **Arguments:**

    - `model`: an adapted model, not traced: the ranks decide about shapes.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Raises:** `WrapperError` that lists every adapter with a `rank_gate` whose update is not known
    as a product (`low_rank_update`); `SelectionError` if `model` is traced, a `Net` or a set.
    """
    expect_model(model, "shrink")
    gated = map_adapters(lambda _, a: a if MatrixAdapter.of(type(a)).rank_gate else None, model)
    adapters = [adapter for _, adapter in adapted_layers(gated)]
    if is_traced(adapters):
        raise SelectionError(
            "shrink cannot run under `jit` or another transformation: the shapes of its result "
            "depend on which directions are zero. Call it when training is done."
        )
    converted, _ = to_lora(gated, registry=registry)
    if adapters and not any(map(_is_open, adapters)):
        warn(
            "Every gate is zero, so no adapter is left. AdaLoRA's gates start at zero: call shrink "
            "when training is done."
        )

    def shrunk(_: str, adapter: LoRAWrapper, lora: Any) -> Any:
        if lora is None:
            return adapter
        return _without_zeros(lora) if _is_open(adapter) else unwrap_lora(lora)

    return map_adapters(shrunk, model, converted)


def _is_open(adapter: LoRAWrapper) -> bool:
    """Whether any direction of an adapter, or of one of its matrices, is on."""
    gate = MatrixAdapter.of(type(adapter)).rank_gate
    return any(map(np.any, jax.tree.leaves(getattr(adapter, gate or ""))))


def _without_zeros(adapter: LoRAWrapper) -> Any:
    """Plain LoRA without the directions that are zero; the plain layer if all of them are."""
    if has_products(type(adapter)):  # `to_lora` gave several matrices the rank that they need
        return adapter
    factors = known_factors(adapter)
    assert factors is not None
    layer = unwrap_lora(adapter)
    is_nonzero = np.any(factors.A != 0, axis=-1) & np.any(factors.B != 0, axis=-2)
    rank = int(is_nonzero.sum(axis=-1).max())
    if rank == 0:
        return layer
    # A stable sort puts the nonzero directions first, in their order.
    nonzero = np.argsort(~is_nonzero, axis=-1, kind="stable")[..., :rank]
    update = Factors(
        jnp.take_along_axis(factors.A, nonzero[..., :, None], axis=-2),
        jnp.take_along_axis(factors.B, nonzero[..., None, :], axis=-1),
    )
    return lora_around(layer, type(adapter), update)

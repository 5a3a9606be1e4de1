"""Smaller adapters: plain LoRA without the directions that a controller has closed."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._contract import LoRAWrapper, expect_model, has_products, is_traced
from .._errors import SelectionError, warn
from .._merge import plain_layer
from .._registry import Registry
from .._sharding import restored_layer
from .._tree import adapted_layers, map_adapters, refuse_second
from ._convert import to_lora
from ._products import Factors, known_factors

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
    gated: dict[str, LoRAWrapper] = {}
    for path, adapter in adapted_layers(model):
        if type(adapter).rank_gate is not None:
            refuse_second(path, gated, "adapters")
            gated[path] = adapter
    if is_traced(gated):
        raise SelectionError(
            "shrink cannot run under `jit` or another transformation: the shapes of its result "
            "depend on which directions are zero. Call it when training is done."
        )
    converted, _ = to_lora(gated, registry=registry)
    is_open = {path: any(map(np.any, _gates(adapter))) for path, adapter in gated.items()}
    if gated and not any(is_open.values()):
        warn(
            "Every gate is zero, so no adapter is left. AdaLoRA's gates start at zero: call shrink "
            "when training is done."
        )
    shrunk = {
        path: _without_zeros(adapter) if is_open[path] else plain_layer(adapter)
        for path, adapter in converted.items()
    }
    return map_adapters(lambda path, adapter: shrunk.get(path, adapter), model)


def _gates(adapter: LoRAWrapper) -> list[Array]:
    """The gate of an adapter, or the gate of each of its matrices."""
    return jax.tree.leaves(getattr(adapter, type(adapter).rank_gate or ""))


def _without_zeros(adapter: LoRAWrapper) -> Any:
    """Plain LoRA without the directions that are zero; the plain layer if all of them are."""
    if has_products(type(adapter)):  # `to_lora` gave several matrices the rank that they need
        return adapter
    factors = known_factors(adapter)
    assert factors is not None
    layer = plain_layer(adapter)
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
    return restored_layer(type(adapter), layer, *update.as_adapter(type(adapter)))

"""Smaller adapters: plain LoRA without the directions that a controller has closed."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import LoRAWrapper, MatrixAdapter, Registry, unwrap_lora
from jno.lora.extending import adapted_layers, expect_model, known_factors, map_adapters, warn
from jno.lora.parts import Factors

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
    as a product (`low_rank_update`); `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "shrink")
    gated = map_adapters(lambda _, a: a if _gate_of(a) else None, model)
    gates = {path: getattr(a, _gate_of(a) or "") for path, a in adapted_layers(gated)}
    converted, _ = to_lora(gated, registry=registry)
    is_open = {path: any(map(np.any, jax.tree.leaves(gate))) for path, gate in gates.items()}
    if is_open and not any(is_open.values()):
        warn(
            "Every gate is zero, so no adapter is left. AdaLoRA's gates start at zero: call shrink "
            "when training is done."
        )

    def shrunk(path: str, adapter: LoRAWrapper, lora: Any) -> Any:
        if lora is None:
            return adapter
        return _without_zeros(lora) if is_open[path] else unwrap_lora(lora)

    return map_adapters(shrunk, model, converted)


def _gate_of(adapter: LoRAWrapper) -> str | None:
    return MatrixAdapter.of(type(adapter)).rank_gate


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

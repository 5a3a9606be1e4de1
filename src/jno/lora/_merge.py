"""Take adapters out again: fold them into their layers, or drop them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._compute.precision import in_dtypes_of, widened
from ._contract.calling import refusal_of_template
from ._contract.checks import check_same_structure, expect_model
from ._contract.wrapper import LoRAWrapper, merged_layer, unwrapped_layer
from ._errors import errors_as
from ._paths import show_place
from ._run import run
from ._sharding import sharded_like
from ._shared_arrays import filler
from ._tree import map_adapters

M = TypeVar("M")


def merge_lora(model: M) -> M:
    """`model` with every adapter folded into its layer.

    Pure and differentiable, so it may run inside a loss, for models that read the weights of their
    layers in ways that an adapter cannot intercept.

    **Arguments:** `model`, any pytree. Only its adapted layers change.

    **Returns:** a tree of the structure, classes, shapes and dtypes of the model before adapting.

    **Raises:** `WrapperError`, naming the path, if an adapter cannot be merged, or if its merged
    layer has another structure, shape or dtype; `SelectionError` if `model` is a `Net` or a set.
    """
    return _without_adapters(model, merged_layer, "merge")


def unwrap_lora(model: M) -> M:
    """`model` with every adapter dropped: the layers as they were before adapting.

    **Arguments:** `model`, any pytree. Only its adapted layers change.

    **Raises:** `WrapperError`, naming the path, if an adapter's `unwrap` fails; `SelectionError` if
    `model` is a `Net` or a set.
    """
    return _without_adapters(model, unwrapped_layer, "unwrap")


def disabled(model: M) -> M:
    """`model` without its adapters, as a constant: the reference model of a loss.

        reference = jax.vmap(jno.lora.disabled(model))(x)

    No array is copied, and no gradient flows through the result. The layers come from
    `jno.lora.unwrap_lora`, so they equal the layers before adapting bit for bit. If an adapter
    replaced the weight (PiSSA, MiLoRA), its layer is restored up to rounding, which costs a small
    product; `with net.disabled()` restores it bit for bit. Arrays outside of adapters keep their
    current values, trained or not.

    **Arguments:** `model`: any pytree, adapted or not. May be traced.

    **Raises:** as `unwrap_lora`.
    """
    expect_model(model, "disabled")

    def stop(leaf: object) -> PyTree:
        return jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(stop, unwrap_lora(model))


def _without_adapters(model: M, take_out: Callable[[LoRAWrapper], eqx.Module], verb: str) -> M:
    expect_model(model, f"{verb}_lora")
    advice = f"To {verb} it: eqx.filter_eval_shape({verb}_lora, model)"
    fill = filler(model)

    def checked(path: str, adapter: LoRAWrapper) -> eqx.Module:
        adapter = fill(adapter)
        where = show_place(type(adapter), path)
        with errors_as(f"{verb} {where}", hint=partial(refusal_of_template, adapter, advice)):
            layer = plain_layer(adapter, take_out)
        check_same_structure(adapter.base, layer, f"`{verb}()` of {where}")
        return in_dtypes_of(adapter.base, layer)

    return map_adapters(checked, model)


def plain_layer(adapter: LoRAWrapper, take_out: Callable[..., Any] = unwrapped_layer) -> Any:
    """The plain layer that `take_out` makes: by default, the layer before adapting."""
    return sharded_like(run(take_out, adapter), adapter.base)


def wide_layers(adapter: LoRAWrapper) -> tuple[Any, Any]:
    """The layer before adapting, and the merged layer, in wider dtypes. Needs x64."""
    wide = widened(adapter)
    return run(unwrapped_layer, wide), run(merged_layer, wide)

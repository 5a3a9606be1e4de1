"""Take adapters out again: fold them into their layers, or drop them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ._compute import in_dtypes_of
from ._contract import (
    LoRAWrapper,
    check_same_structure,
    expect_model,
    merged_layer,
    refusal_of_template,
    unwrapped_layer,
)
from ._errors import failing
from ._paths import show_place
from ._sharding import on_the_mesh, sharded_like
from ._tree import adapted_layers, replace_adapters

M = TypeVar("M")


def merge_lora(model: M) -> M:
    """`model` with every adapter folded into its layer.

    Pure and differentiable. It may run inside a loss, for models that read their layers' weights
    in ways that an adapter cannot see (see the documentation on training).

    **Arguments:**

    - `model`: any pytree. Everything that is not an adapted layer is returned as it is.

    **Returns:** a tree of the structure, classes, shapes and dtypes of the model before adapting.

    **Raises:** `WrapperError`, naming the path, if an adapter cannot be merged, or if its merged
    layer differs in structure, shape or dtype from the layer that it wraps; `SelectionError` if
    `model` is a `Net` or a set.
    """
    expect_model(model, "merge_lora")
    return _without_adapters(model, merged_layer, "merge")


def unwrap_lora(model: M) -> M:
    """`model` with every adapter dropped: the layers as they were before adapting.

    **Arguments:**

    - `model`: any pytree. Everything that is not an adapted layer is returned as it is.

    **Raises:** `WrapperError`, naming the path, if an adapter's `unwrap` fails; `SelectionError` if
    `model` is a `Net` or a set.
    """
    expect_model(model, "unwrap_lora")
    return _without_adapters(model, unwrapped_layer, "unwrap")


def _without_adapters(model: M, plain: Callable[[LoRAWrapper], Any], verb: str) -> M:
    layers: list[Any] = []
    for path, node in adapted_layers(model):
        where = show_place(type(node), path)
        advice = f"To {verb} it: eqx.filter_eval_shape({verb}_lora, model)"
        with failing(f"{verb} {where}", hint=partial(refusal_of_template, node, advice)):
            layer = on_the_mesh(node, plain, node, settle=_settled)
        check_same_structure(node.base, layer, f"`{verb}()` of {where}")
        layers.append(in_dtypes_of(node.base, layer))
    return replace_adapters(model, layers)


def _settled(layer: Any, adapter: LoRAWrapper) -> Any:
    return sharded_like(layer, adapter.base)

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
from ._tree import map_adapters

M = TypeVar("M")
TakeOut = Callable[[LoRAWrapper], Any]


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
    return _without_adapters(model, merged_layer, "merge")


def unwrap_lora(model: M) -> M:
    """`model` with every adapter dropped: the layers as they were before adapting.

    **Arguments:**

    - `model`: any pytree. Everything that is not an adapted layer is returned as it is.

    **Raises:** `WrapperError`, naming the path, if an adapter's `unwrap` fails; `SelectionError` if
    `model` is a `Net` or a set.
    """
    return _without_adapters(model, unwrapped_layer, "unwrap")


def _without_adapters(model: M, take_out: TakeOut, verb: str) -> M:
    expect_model(model, f"{verb}_lora")
    advice = f"To {verb} it: eqx.filter_eval_shape({verb}_lora, model)"

    def checked(path: str, adapter: LoRAWrapper) -> Any:
        where = show_place(type(adapter), path)
        with failing(f"{verb} {where}", hint=partial(refusal_of_template, adapter, advice)):
            layer = plain_layer(adapter, take_out)
        check_same_structure(adapter.base, layer, f"`{verb}()` of {where}")
        return in_dtypes_of(adapter.base, layer)

    return map_adapters(checked, model)


def plain_layer(adapter: LoRAWrapper, take_out: TakeOut = unwrapped_layer) -> Any:
    """The layer that `take_out` makes of an adapter: by default, as it was before adapting."""
    return on_the_mesh(
        adapter, take_out, adapter, settle=lambda layer, _: sharded_like(layer, adapter.base)
    )

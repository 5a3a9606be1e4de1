"""Taking adapters out again: folded into their layers, or dropped."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax.tree_util as jtu

from ._compute import in_dtypes_of
from ._contract import (
    LoRAWrapper,
    check_same_form,
    expect_model,
    is_wrapper,
    merged_layer,
    unwrapped_layer,
    why,
)
from ._errors import JnoLoraError, WrapperError
from ._paths import path_str, show_path
from ._sharding import on_the_mesh, sharded_like

M = TypeVar("M")


def merge_lora(model: M) -> M:
    """`model` with every adapter folded into its layer.

    Pure and differentiable: it may run inside a loss, for models that read their layers' weights
    in ways that no wrapper can see (see the documentation on training).

    **Arguments:**

    - `model`: any pytree. What carries no adapter is returned as it is.

    **Returns:** a tree of the structure, classes, shapes and dtypes of the model before adapting.

    **Raises:** `WrapperError`, naming the path, if an adapter cannot be merged or merges into
    something else than it wrapped; `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "merge_lora")
    return _replace_wrappers(model, merged_layer, "merge")


def unwrap_lora(model: M) -> M:
    """`model` with every adapter dropped: the layers as they were before adapting.

    **Arguments:**

    - `model`: any pytree. What carries no adapter is returned as it is.

    **Raises:** `WrapperError`, naming the path, if an adapter's `unwrap` fails; `SelectionError` if
    `model` is a `Net` or a set.
    """
    expect_model(model, "unwrap_lora")
    return _replace_wrappers(model, unwrapped_layer, "unwrap")


def _replace_wrappers(model: M, plain: Callable[[LoRAWrapper], Any], verb: str) -> M:
    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_wrapper)
    replaced = [node for _, node in nodes]
    for index, (keys, node) in enumerate(nodes):
        if not is_wrapper(node):
            continue
        where = f"the {type(node).__name__} at {show_path(path_str(keys))!r}"
        try:
            layer = on_the_mesh(node, plain, node, settle=_settled)
        except JnoLoraError as err:
            raise type(err)(f"Could not {verb} {where}: {err}") from err
        except Exception as err:
            advice = f"To {verb} it: eqx.filter_eval_shape({verb}_lora, model)"
            raise WrapperError(f"Could not {verb} {where}: {why(err, node, advice)}") from err
        check_same_form(node.base, layer, f"`{verb}()` of {where}")
        replaced[index] = in_dtypes_of(node.base, layer)
    return jtu.tree_unflatten(treedef, replaced)


def _settled(layer: Any, wrapper: LoRAWrapper) -> Any:
    return sharded_like(layer, wrapper.base)

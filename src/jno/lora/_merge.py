"""Taking adapters out again: folded into their layers, or dropped."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax.tree_util as jtu

from ._contract import LoRAWrapper, is_wrapper, merged_layer, unwrapped_layer
from ._errors import JnoLoraError, WrapperError
from ._handle import refuse_net, without_values
from ._paths import path_str, show_array, show_path
from ._precision import held_dtype, in_dtypes_of
from ._sharding import calls_on_the_mesh, sharded_like

M = TypeVar("M")


def merge_lora(model: M) -> M:
    """`model` with every adapter folded into its layer.

    Pure and differentiable: it may run inside a loss, for models that read their layers' weights
    in ways that no wrapper can see (see the documentation on training).

    **Arguments:**

    - `model`: any pytree. What carries no adapter is returned as it is.

    **Returns:** a tree of the structure, classes, shapes and dtypes of the model before adapting.

    **Raises:** `WrapperError`, naming the path, if an adapter cannot be merged or merges into
    something else than it wrapped; `SelectionError` if `model` is a `Net`.
    """
    refuse_net(model, "merge_lora")
    return _replace_wrappers(model, merged_layer, "merge")


def unwrap_lora(model: M) -> M:
    """`model` with every adapter dropped: the layers as they were before adapting.

    **Arguments:**

    - `model`: any pytree. What carries no adapter is returned as it is.

    **Raises:** `WrapperError`, naming the path, if an adapter's `unwrap` fails; `SelectionError` if
    `model` is a `Net`.
    """
    refuse_net(model, "unwrap_lora")
    return _replace_wrappers(model, unwrapped_layer, "unwrap")


def _replace_wrappers(model: M, plain: Callable[[LoRAWrapper], Any], verb: str) -> M:
    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_wrapper)
    wrappers = [(index, keys) for index, (keys, node) in enumerate(nodes) if is_wrapper(node)]
    calls = calls_on_the_mesh(plain, (), [(nodes[index][1],) for index, _ in wrappers], _settled)
    replaced = [node for _, node in nodes]
    for place, (index, keys) in enumerate(wrappers):
        node: Any = replaced[index]
        where = f"the {type(node).__name__} at {show_path(path_str(keys))!r}"
        try:
            layer = calls.result(place)
        except JnoLoraError as err:
            raise type(err)(f"Could not {verb} {where}: {err}") from err
        except Exception as err:
            advice = f"To {verb} it: eqx.filter_eval_shape({verb}_lora, model)"
            why = without_values(node, advice) or f"{type(err).__name__}: {err}"
            raise WrapperError(f"Could not {verb} {where}: {why}") from err
        _check_same_form(node.base, layer, f"`{verb}()` of {where}")
        replaced[index] = in_dtypes_of(node.base, layer)
    return jtu.tree_unflatten(treedef, replaced)


def _settled(layer: Any, wrapper: LoRAWrapper) -> Any:
    return sharded_like(layer, wrapper.base)


def _check_same_form(base: eqx.Module, layer: Any, what: str) -> None:
    before, form = jtu.tree_flatten(base)
    after, new_form = jtu.tree_flatten(layer)
    if form != new_form:
        raise WrapperError(
            f"{what} must return a layer of the structure that was wrapped, expected\n{base}\n"
            f"but got\n{layer}"
        )
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is new or not hasattr(old, "dtype"):
            continue
        if hasattr(new, "dtype") and (old.shape, held_dtype(old)) == (new.shape, held_dtype(new)):
            continue
        path = path_str(jtu.tree_leaves_with_path(base)[index][0])
        if not hasattr(new, "dtype"):
            raise WrapperError(
                f"{what} puts {new!r} at {path!r}, where the layer has an array "
                f"{show_array(old)}: keep its shape and dtype."
            )
        raise WrapperError(
            f"{what} changes {path!r} from {show_array(old)} to {show_array(new)}: keep the shape, "
            "and cast back to the base's dtype."
        )

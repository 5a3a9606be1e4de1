"""`declare_raw`: adapt raw arrays that become weights by a function, such as a mask."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer

from jno.lora import SelectionError
from jno.lora.extending import (
    adapted_layers,
    bullets,
    expect_model,
    modules_by_path,
    path_str,
    show_path,
)

from ._box import DeclaredArray, is_declared
from ._declare import Letters, boxed
from ._raw_node import (
    TakenApart,
    is_non_trainable,
    is_unwrappable,
    leaves_of,
    library_class,
    taken_apart_class,
)

T = TypeVar("T")


def declare_raw(model: T, axes: Mapping[str, str] | None = None) -> T:
    """Declare the raw arrays behind the functions of `model`, so that adapters can train them.

    Use it for weights behind a mask, a weight normalisation, `softplus` or any function of paramax
    or a similar library. The adapter acts before the function: `f(W)` becomes `f(W + B A)`, so a
    mask still masks and a positive weight stays positive. Use the model as before, because its
    library calls the functions: `net = Net(declare_raw(flow)).lora(rank=4)`, then
    `net.module.log_prob(x)`.

    **Arguments:**

    - `model`: a pytree with nodes whose class derives from a class `AbstractUnwrappable`. Arrays in
        a `NonTrainable` are left out, because it stops their gradients. NumPy arrays, and arrays
        of zeros and ones with a one, count as constants such as masks, unless `axes` declares them.
    - `axes`: letters for the axes of arrays, by a regex on their path in `model`, as for `declare`.
        By default the last two axes are `oi`, with one more `i` for each size of the layer's
        `kernel_size`, and axes before these are a stack. An array with a single output or input
        has no default.

    **Returns:** a model with the same values. `plain` returns the original classes, with the
    adapters folded into the raw arrays. The adapters are lost if the library unwraps the whole
    model, so unwrap the model inside of the loss.

    **Raises:** `SelectionError` if no array is declared, if arrays behind a function are declared
    already or have adapters, and for `axes` as in `declare`.
    """
    expect_model(model, "declare_raw")
    letters = Letters(axes or {})
    modules = modules_by_path(model)
    paths: list[str] = []  # of all arrays behind functions

    def box(path: str, array: Any, layer: Any) -> DeclaredArray | None:
        """The declared array, or `None` if `array` is not a matrix of parameters."""
        if not eqx.is_inexact_array(array):
            return None
        paths.append(path)
        axis_letters = letters.of(path)
        if axis_letters is None and not _is_constant(array):
            axis_letters = _default_letters(array, layer)
        return None if axis_letters is None else boxed(array, axis_letters, path)

    def taken_apart(keys: tuple[Any, ...], node: Any, layer: Any) -> Any:
        if not is_unwrappable(node) or is_non_trainable(node):
            return node
        _refuse_second(keys, node)
        leaves_with_keys, structure = leaves_of(node)
        leaves: list[Any] = []
        boxes: dict[int, DeclaredArray] = {}
        for place, (inner, leaf) in enumerate(leaves_with_keys):
            leaf = taken_apart((*keys, *inner), leaf, layer)
            declared = box(path_str((*keys, *inner)), leaf, layer)
            if declared is not None:
                boxes[place], leaf = declared, None
            leaves.append(leaf)
        if not boxes:
            return jtu.tree_unflatten(structure, leaves)
        cls = taken_apart_class(library_class(node))
        return cls(tuple(boxes.values()), tuple(leaves), tuple(boxes), structure)

    nodes, treedef = jtu.tree_flatten_with_path(model, is_leaf=is_unwrappable)
    declared = [taken_apart(keys, x, modules.get(path_str(keys[:-1]))) for keys, x in nodes]
    letters.check_used(paths)
    if not any(is_declared(leaf) for leaf in jtu.tree_leaves(declared, is_leaf=is_declared)):
        raise SelectionError(
            "No matrix of this model is behind a function of paramax: expected nodes that derive "
            "from a class `AbstractUnwrappable`, such as `Parameterize`, outside of "
            "`NonTrainable`, with an array of two axes or more that is not a mask. Arrays behind "
            f"functions:\n{bullets(paths or ['none'])}\nFor bare arrays, use `declare`."
        )
    return jtu.tree_unflatten(treedef, declared)


def _refuse_second(keys: tuple[Any, ...], node: Any) -> None:
    """**Raises:** `SelectionError` if `node` was taken apart before, or contains an adapter."""
    if isinstance(node, TakenApart) or any(True for _ in adapted_layers(node)):
        raise SelectionError(
            f"The {type(node).__name__} at {show_path(path_str(keys))!r} is declared already, or "
            "holds an adapter. Take `plain` of the model first, or fold the adapter in by "
            "`merge_lora`."
        )


def _is_constant(array: Any) -> bool:
    """Whether `array` looks like a constant.

    An array of zeros counts as a weight, because weights may start as zeros. So does a traced
    array, because its values are unknown.
    """
    if isinstance(array, Tracer):
        return False
    if isinstance(array, np.ndarray):
        return True
    return bool(jnp.all((array == 0) | (array == 1)) & jnp.any(array == 1))


def _default_letters(array: Any, layer: Any) -> str | None:
    """The letters of a weight of `layer`, if it is a matrix or a stack of matrices."""
    inputs = 1 + len(getattr(layer, "kernel_size", ()))
    if array.ndim <= inputs:
        return None
    *stack, outputs = array.shape[:-inputs]
    is_matrix = outputs > 1 and math.prod(array.shape[-inputs:]) > 1
    return "s" * len(stack) + "o" + "i" * inputs if is_matrix else None

"""`infer`: the axes of arrays, from the way in which a function uses them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError, plan_lora
from jno.lora.extending import expect_model, path_str

from .._boxes import IN_LAYER, NOT_A_PARAMETER, ArrayAxes, InferredAxes, is_declared
from .._tracing import Evaluation
from ._letters import letters_of
from ._watched import Record, watched


def infer(function: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> InferredAxes:
    """The axes of the arrays in `params`, from how `function(params, *args)` uses each of them.

    The function is traced once, and nothing is computed. Axes that a product, a convolution or an
    `einsum` sums over are inputs, and axes that it keeps are outputs. Axes that are scanned, or
    shared by both sides of a product, belong to a stack. An axis that is looked up by number is an
    input too (`e`). `infer` looks through transposes, reshapes, casts, slices, `concatenate`, sums
    over an axis, `scan`, `checkpoint` and functions with rules of their own.

    **Arguments:**

    - `function`: such as the `apply` of a Flax or Haiku model, or `lambda model, x: ...`.
    - `params`: a pytree of arrays, or of their shapes. An Equinox module counts too: arrays in
        layers that have adapters are left to them.
    - `args`, `kwargs`: as of a call; arrays may be given by their shapes.

    **Returns:** `InferredAxes` for `declare`. `print` it: each array without axes has a reason,
    such as that it has one axis, is only added or multiplied entry by entry, or has uses that
    contradict each other. A weight that is masked by `jnp.where`, summed over an axis, reversed or
    joined with more arrays has axes, but `through` merges it.

    **Raises:** `SelectionError` if `params` hold declared arrays.
    """
    expect_model(params, "infer")
    if any(is_declared(node) for node in jax.tree.leaves(params, is_leaf=is_declared)):
        raise SelectionError(
            "`infer` calls the function with bare arrays, but these are declared already. Take "
            "`plain` of them first."
        )
    paths_and_leaves, treedef = jtu.tree_flatten_with_path(params)
    paths = [path_str(keys) for keys, _ in paths_and_leaves]
    leaves = [leaf for _, leaf in paths_and_leaves]
    reasons = dict(zip(paths, map(_why_never, leaves), strict=True))
    reasons |= dict.fromkeys(_paths_in_layers(params), IN_LAYER)
    records = {path: Record() for path, reason in reasons.items() if reason is None}
    evaluation = Evaluation()

    def watch(leaves: list[Any], args: Any, kwargs: Any) -> None:
        arrays, static = eqx.partition(leaves, eqx.is_array)

        def call(arrays: Any) -> Any:
            model = jax.tree.unflatten(treedef, eqx.combine(arrays, static))
            return eqx.filter(function(model, *args, **kwargs), eqx.is_array)

        operands = [
            watched(path, array, records[path]) if path in records else array
            for path, array in zip(paths, arrays, strict=True)
            if array is not None
        ]
        evaluation.run_dense(jax.make_jaxpr(call)(arrays), operands)

    eqx.filter_eval_shape(watch, leaves, args, kwargs)
    rows: list[ArrayAxes] = []
    for path, leaf in zip(paths, leaves, strict=True):
        axes, reason = None, reasons[path]
        if path in records:
            uses = (use for use in evaluation.uses if path in use.adapter.split(" + "))
            operations = [use.operation for use in uses]
            axes, reason = letters_of(leaf.ndim, records[path], operations)
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | np.ndarray):
            rows.append(ArrayAxes(path, tuple(leaf.shape), axes, reason))
    return InferredAxes(tuple(rows))


def _paths_in_layers(params: PyTree) -> set[str]:
    """The arrays in layers that `wrapper="auto"` adapts."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, eqx.Module))
    if not any(isinstance(node, eqx.Module) for node in nodes):
        return set()

    def adapted(params: Any) -> list[str]:
        return [row.path for row in plan_lora(params, 1, wrappers="auto").wrapped]

    layers = eqx.filter_eval_shape(adapted, params)  # a layer of shapes is a layer, too
    paths = (path_str(keys) for keys, _ in jtu.tree_leaves_with_path(params))
    return {path for path in paths if any(path.startswith(f"{layer}/") for layer in layers)}


def _why_never(array: Any) -> str | None:
    """Why an array has no axes for `declare`, whatever its uses."""
    if not hasattr(array, "dtype"):
        return "not an array"
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return f"{array.dtype}{NOT_A_PARAMETER}"
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"{array.dtype}: keep its real and imaginary parts in two arrays"
    if len(array.shape) < 2:
        return "one axis: a bias, or the scale of a norm"
    return None

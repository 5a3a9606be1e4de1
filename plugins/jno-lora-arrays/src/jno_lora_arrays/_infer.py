"""`infer`: find the axes of arrays from how a function uses them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError, Table, plan_lora
from jno.lora.extending import Printed, expect_model, path_str, table

from ._box import is_declared
from ._tracing import Evaluation
from ._watched import Record, watched

_SEEN_IN = {
    **dict.fromkeys(("add", "sub", "add_any"), "added"),
    **dict.fromkeys(("mul", "div"), "multiplied entry by entry"),
    "broadcast_in_dim": "repeated, to be added or multiplied entry by entry",
}
_IN_LAYER = "in a layer that has adapters of its own"
_NOT_A_PARAMETER = ": a mask or an index, not a parameter"


class ArrayAxes(NamedTuple):
    """The result of `infer` for one array.

    - `path`, `shape`: the array.
    - `axes`: a letter for each of its axes, as `declare` takes them; `None` if they are unknown.
    - `reason`: why they are unknown.
    """

    path: str
    shape: tuple[int, ...]
    axes: str | None
    reason: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class InferredAxes(Printed[ArrayAxes]):
    """The axes of all arrays of a model, for `declare`. Prints as a table."""

    rows: tuple[ArrayAxes, ...]

    @property
    def letters(self) -> dict[str, str]:
        """The known axes, by the path of the array."""
        return {row.path: row.axes for row in self.rows if row.axes is not None}

    @property
    def coverage(self) -> float:
        """The fraction of the entries of all parameters with two axes or more that adapters reach.

        Arrays in layers with their own adapters count as reached.
        """
        matrices = [row for row in self.rows if len(row.shape) > 1]
        parameters = [m for m in matrices if not (m.reason or "").endswith(_NOT_A_PARAMETER)]
        reached = [p for p in parameters if p.axes is not None or p.reason == _IN_LAYER]
        entries, total = (sum(math.prod(r.shape) for r in rows) for rows in (reached, parameters))
        return entries / max(1, total)

    def _table(self) -> Table:
        columns = [("array", "left"), ("shape", "left"), ("axes", "left"), ("why not", "left")]
        rows = ((row.path, str(row.shape), row.axes or "", row.reason or "") for row in self.rows)
        caption = f"{self.coverage:.1%} of the entries of matrices are reached."
        return table("Axes of arrays, by their uses", columns, rows, caption)


def infer(function: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> InferredAxes:
    """Find the axes of the arrays in `params` from how `function(params, *args)` uses each array.

    The function is traced once, and nothing is computed. Axes that a product, a convolution or an
    `einsum` sums over are inputs, and axes that it keeps are outputs. Axes that are scanned, or
    shared by both sides of a product, belong to a stack. An axis that is looked up by number is an
    input too (`e`). `infer` looks through transposes, reshapes, casts, slices, `concatenate`, sums
    over an axis, `scan`, `checkpoint` and functions with custom derivatives.

    **Arguments:**

    - `function`: such as the `apply` of a Flax or Haiku model, or `lambda model, x: ...`.
    - `params`: a pytree of arrays, or of their shapes. It may be an Equinox module, whose layers
        with their own adapters are left out.
    - `args`, `kwargs`: as in a call; arrays may be given by their shapes.

    **Returns:** `InferredAxes` for `declare`. Print it to see why an array has no axes: it may have
    one axis only, be added or multiplied entry by entry, or have uses that contradict each other.
    A weight that is masked by `jnp.where`, summed over an axis, reversed or joined with more arrays
    has axes, but `through` merges it.

    **Raises:** `SelectionError` if `params` contains declared arrays.
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
    reasons |= dict.fromkeys(_paths_in_layers(params), _IN_LAYER)
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
            axes, reason = _letters_of(leaf.ndim, records[path], operations)
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | np.ndarray):
            rows.append(ArrayAxes(path, tuple(leaf.shape), axes, reason))
    return InferredAxes(tuple(rows))


def _paths_in_layers(params: PyTree) -> set[str]:
    """The arrays in layers that `wrapper="auto"` adapts."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, eqx.Module))
    if not any(isinstance(node, eqx.Module) for node in nodes):
        return set()
    # This also finds layers of shapes.
    plan = eqx.filter_eval_shape(plan_lora, params, 1, wrapper="auto")
    paths = (path_str(keys) for keys, _ in jtu.tree_leaves_with_path(params))
    return {path for path in paths if any(path.startswith(f"{row.path}/") for row in plan.wrapped)}


def _why_never(array: Any) -> str | None:
    if not hasattr(array, "dtype"):
        return "not an array"
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return f"{array.dtype}{_NOT_A_PARAMETER}"
    if len(array.shape) < 2:
        return "one axis: a bias, or the scale of a norm"
    return None


def _letters_of(
    ndim: int, record: Record, operations: Sequence[str]
) -> tuple[str | None, str | None]:
    """The letters of an array, or `None` and the reason. `operations` are not in the record."""
    if not record.products:
        uses = ", ".join(dict.fromkeys(_SEEN_IN.get(name, name) for name in operations))
        return None, f"not in a product: {uses}" if uses else "not in a product"
    letters = _combined(record)
    if letters is None:
        seen = dict.fromkeys(_shown(ndim, product) for product in record.products)
        return None, f"uses that contradict each other: {' and '.join(seen)}"
    looked_up = {letters.get(axis) for axis in record.looked_up}
    if looked_up == {"o"}:
        letters = _swapped(letters)
    if looked_up in ({"o"}, {"i"}):
        letters |= dict.fromkeys(record.looked_up, "e")
    text = _shown(ndim, letters)
    # An axis of size one, or an axis that is only summed, becomes the missing letter.
    text = text.replace("-", "o" if "o" not in text else "i", 1).replace("-", "i")
    if "o" not in text:
        return None, f"a product that keeps none of its axes ({text})"
    if not {*text} & {*"ie"}:
        return None, f"a product that sums over none of its axes ({text})"
    return text, None


def _combined(record: Record) -> dict[str, str] | None:
    """The letters from all uses, by axis; `None` if two uses contradict each other."""
    letters = dict.fromkeys(record.stacked, "s")
    for product in record.products:
        # A product from the other side has inputs and outputs the other way round.
        candidates = (product, _swapped(product))
        fitting = next((c for c in candidates if _agree(letters, c)), None)
        if fitting is None or "?" in fitting.values():
            return None
        letters.update(fitting)
    return letters


def _agree(letters: Mapping[str, str], product: Mapping[str, str]) -> bool:
    return all(letters.get(axis, letter) == letter for axis, letter in product.items())


def _swapped(letters: Mapping[str, str]) -> dict[str, str]:
    return {axis: {"i": "o", "o": "i"}.get(letter, letter) for axis, letter in letters.items()}


def _shown(ndim: int, letters: Mapping[str, str]) -> str:
    return "".join(letters.get(str(axis), "-") for axis in range(ndim))

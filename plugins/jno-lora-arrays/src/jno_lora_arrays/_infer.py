"""`infer`: the axes of arrays, from the way in which a function uses them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from jno.lora import SelectionError, plan_lora
from jno.lora.extending import Printed, expect_model, path_str, table
from jno.lora.types import Table

from ._evaluate import Evaluation
from ._report import Use
from ._runs import Run, RunsView, joint
from ._views import Conv, Declined, Dot, Lookup, Ragged
from ._virtual import of_view
from .layer import is_declared


class ArrayAxes(NamedTuple):
    """The result of `infer` for one array.

    - `path`, `shape`: the array.
    - `axes`: a letter for each of its axes, as `declare` takes them; `None` if it has none.
    - `reason`: why it has none.
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
        """The axes of the arrays that have some, by path."""
        return {row.path: row.axes for row in self.rows if row.axes is not None}

    @property
    def coverage(self) -> float:
        """The part of the entries of all parameters with two axes or more that adapters reach.

        Arrays in layers that have adapters of their own count as reached.
        """
        rows = (row for row in self.rows if not (row.reason or "").endswith(_NO_PARAMETER))
        sizes = [(math.prod(row.shape), row) for row in rows if len(row.shape) > 1]
        reached = sum(n for n, row in sizes if row.axes is not None or row.reason == _IN_LAYER)
        return reached / max(1, sum(n for n, _ in sizes))

    def _table(self) -> Table:
        columns = [("array", "left"), ("shape", "left"), ("axes", "left"), ("why not", "left")]
        rows = ((row.path, str(row.shape), row.axes or "", row.reason or "") for row in self.rows)
        caption = f"{self.coverage:.1%} of the entries of matrices are reached."
        return table("Axes of arrays, by their uses", columns, rows, caption)


_IN_LAYER = "in a layer that has adapters of its own"
_NO_PARAMETER = ": a mask or an index, not a parameter"


def infer(function: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> InferredAxes:
    """The axes of the arrays in `params`, from how `function(params, *args)` uses each of them.

    The function is traced once, nothing is computed. An axis that a product, a convolution or an
    `einsum` sums over is an input, one that it keeps is an output. An axis that is scanned, or that
    both sides of a product share, is one of a stack. An axis that is looked up by number is an
    input too (`e`). Transposes, reshapes, casts, slices, `concatenate`, sums over an axis, `scan`,
    `checkpoint` and functions with rules of their own are looked through.

    **Arguments:**

    - `function`: such as the `apply` of a Flax or Haiku model, or `lambda model, x: ...`.
    - `params`: a pytree of arrays, or of their shapes. An Equinox module counts too: arrays in
        layers that have adapters are left to them.
    - `args`, `kwargs`: as of a call; arrays may be given by their shapes.

    **Returns:** `InferredAxes` for `declare`. `print` it: each array without axes has a reason,
    such as that it has one axis, is only added or multiplied entry by entry, or has uses that
    contradict each other. A weight that is masked by `jnp.where`, summed over an axis, reversed or
    joined with others has axes, but `through` merges it.

    **Raises:** `SelectionError` if `params` hold declared arrays.
    """
    expect_model(params, "infer")
    if any(is_declared(node) for node in jax.tree.leaves(params, is_leaf=is_declared)):
        raise SelectionError(
            "`infer` calls the function with bare arrays, but these are declared already. Take "
            "`plain` of them first."
        )
    leaves, treedef = jtu.tree_flatten_with_path(params)
    in_layers = _paths_in_layers(params)
    evaluation, records = Evaluation(), {}

    def watch(values: Sequence[Any], args: Any, kwargs: Any) -> None:
        arrays, rest = eqx.partition(list(values), eqx.is_array)

        def call(arrays: Any) -> Any:
            model = jax.tree.unflatten(treedef, eqx.combine(arrays, rest))
            return eqx.filter(function(model, *args, **kwargs), eqx.is_array)

        given = []
        for (keys, _), value in zip(leaves, values, strict=True):
            path = path_str(keys)
            is_watched = path not in in_layers and _why_never(value) is None
            given.append(_watched(path, value, records) if is_watched else value)
        traced = jax.make_jaxpr(call)(arrays)
        evaluation.run_dense(
            traced, [x for x, one in zip(given, arrays, strict=True) if one is not None]
        )

    eqx.filter_eval_shape(watch, [leaf for _, leaf in leaves], args, kwargs)
    rows = [
        _row(path_str(keys), leaf, in_layers, records, evaluation.uses)
        for keys, leaf in leaves
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | np.ndarray)
    ]
    return InferredAxes(tuple(rows))


def _row(
    path: str, array: Any, in_layers: set[str], records: Mapping[str, "Record"], uses: Sequence[Use]
) -> ArrayAxes:
    axes, reason = None, _IN_LAYER if path in in_layers else _why_never(array)
    if reason is None:
        own = [use for use in uses if path in use.adapter.split(" + ")]
        axes, reason = _axes(array.shape, records[path], own)
    return ArrayAxes(path, tuple(array.shape), axes, reason)


def _paths_in_layers(params: PyTree) -> set[str]:
    """The arrays in layers that `wrapper="auto"` adapts."""
    modules = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, eqx.Module))
    if not any(isinstance(node, eqx.Module) for node in modules):
        return set()

    def adapted(params: Any) -> list[str]:
        return [row.path for row in plan_lora(params, 1, wrappers="auto").wrapped]

    layers = eqx.filter_eval_shape(adapted, params)  # a layer of shapes is a layer, too
    paths = (path_str(keys) for keys, _ in jtu.tree_leaves_with_path(params))
    return {path for path in paths if any(path.startswith(f"{layer}/") for layer in layers)}


def _why_never(array: Any) -> str | None:
    if not hasattr(array, "dtype"):
        return "not an array"
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return f"{array.dtype}{_NO_PARAMETER}"
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"{array.dtype}: keep its real and imaginary parts in two arrays"
    if len(array.shape) < 2:
        return "one axis: a bias, or the scale of a norm"
    return None


class Record(NamedTuple):
    """The uses seen of one array.

    - `products`: for each product, the letters of those axes that it used.
    - `stacked`: axes that were scanned, or taken apart by number.
    - `looked_up`: axes along which rows were looked up.
    """

    products: list[dict[str, str]]
    stacked: set[str]
    looked_up: set[str]


class Watched(RunsView):
    """A view of a bare array that notes how each axis is used. Its sides are the axes' numbers."""

    only_watches: ClassVar[bool] = True

    array: Array
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    record: Record = eqx.field(static=True)
    name: str = eqx.field(static=True)
    # The axes of which a list of places was looked up: of a stack, if no convolution uses them.
    picked: frozenset[str] = eqx.field(static=True, default=frozenset())

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def dense(self) -> Array:
        return self.array

    def transposed(self, order: Sequence[int]) -> Any:
        moved = super().transposed(order)
        return dataclasses.replace(moved, array=self.array.transpose(order))

    def reshaped(self, shape: Sequence[int]) -> Any:
        new = super().reshaped(shape)
        if isinstance(new, Declined):
            return new
        return dataclasses.replace(new, array=self.array.reshape(shape))

    def cast(self, dtype: Any) -> "Watched":
        return dataclasses.replace(self, array=self.array.astype(dtype))

    def cut(self, axis: int, start: Any, size: int) -> "Watched":
        runs = list(self.runs)
        if size == 1:
            if sum(n > 1 for n in self.shape) > 2:  # a row of a matrix may be anything
                self.record.stacked.update(side for side, *_ in runs[axis])
            runs[axis] = ()
        else:
            runs[axis] = self._resized(axis, size)
        array = lax.dynamic_slice_in_dim(self.array, start, size, axis)
        return dataclasses.replace(self, array=array, runs=tuple(runs))

    def looked_up(self, lookup: Lookup) -> Any:
        rows = lookup.gather(self.array)
        sides = {side for axis in lookup.axes for side, *_ in self.runs[axis]}
        others = [axis for axis in range(self.ndim) if axis not in lookup.axes]
        if sum(size > 1 for size in (self.shape[axis] for axis in others)) < 2:
            self.record.looked_up.update(sides)
            kept = {side: "o" for axis in others for side, *_ in self.runs[axis]}
            self.record.products.append({**dict.fromkeys(sides, "i"), **kept})
            return rows
        is_list = len(sides) == len(lookup.axes) == len(lookup.at) == 1
        is_list = is_list and rows.shape[lookup.at[0]] > 1
        if not is_list:
            self.record.stacked.update(sides)
        left = iter(others)
        runs = tuple(
            self.runs[next(left)]
            if place not in lookup.at
            else self._resized(lookup.axes[0], size)
            if is_list
            else (("?", 1, size),)
            for place, size in enumerate(rows.shape)
        )
        picked = self.picked | sides if is_list else self.picked
        return dataclasses.replace(self, array=rows, runs=runs, picked=picked)

    def summed(self, axes: Sequence[int]) -> "Watched":
        # As a product with ones: what the other uses do not say is an input.
        runs = tuple(own for axis, own in enumerate(self.runs) if axis not in axes)
        return dataclasses.replace(self, array=self.array.sum(axes), runs=runs)

    def padded(self, axis: int, before: int, after: int) -> "Watched":
        widths = [(before, after) if one == axis else (0, 0) for one in range(self.ndim)]
        array = jnp.pad(self.array, widths)
        runs = list(self.runs)
        runs[axis] = self._resized(axis, array.shape[axis])
        return dataclasses.replace(self, array=array, runs=tuple(runs))

    def dot(self, dot: Dot) -> Array:
        summed, batch = dot.of_weight
        self.record.stacked.update(self.picked)
        self._note({"i": summed, "s": batch, "o": dot.free()[1]}, self.picked)
        sides = (dot.of_weight, dot.of_x) if dot.weight_first else (dot.of_x, dot.of_weight)
        both = (self.array, dot.x) if dot.weight_first else (dot.x, self.array)
        numbers: Any = tuple(zip(*sides, strict=True))
        return lax.dot_general(*both, numbers, preferred_element_type=dot.out.dtype)

    def conv(self, conv: Conv) -> Array:
        outputs, *inputs = conv.params["dimension_numbers"].rhs_spec
        self._note({"o": [outputs], "i": inputs})
        return jnp.zeros(conv.out.shape, conv.out.dtype)

    def ragged(self, ragged: Ragged) -> Array:
        self._note({"s": [0], "i": [1], "o": [2]})
        return jnp.zeros(ragged.out.shape, ragged.out.dtype)

    def scanned(self) -> tuple[Any, Callable[[Any], "Watched"]]:
        self.record.stacked.update(side for side, *_ in self.runs[0])
        return self.array, lambda one: dataclasses.replace(self, array=one, runs=self.runs[1:])

    def specs(self, spec: PartitionSpec) -> None:
        return None  # each device has other sizes than the runs

    def _resized(self, axis: int, size: int) -> tuple[Run, ...]:
        """Some places of an axis: inputs or outputs, as all of them are."""
        sides = {side for side, *_ in self.runs[axis]}
        return ((sides.pop() if len(sides) == 1 else "?", 1, size),)

    def _note(self, axes: Mapping[str, Sequence[int]], but: frozenset[str] = frozenset()) -> None:
        letters: dict[str, str] = {}
        for letter, places in axes.items():
            for side, *_ in joint(self.runs[place] for place in places):
                if letters.setdefault(side, letter) != letter:
                    letters[side] = "?"  # parts of one axis have two meanings
        for side in ("?", *but):
            letters.pop(side, None)
        self.record.products.append(letters)


def _watched(path: str, array: Array, records: dict[str, Record]) -> Any:
    records[path] = record = Record([], set(), set())
    runs = tuple(((str(n), 1, size),) if size > 1 else () for n, size in enumerate(array.shape))
    return of_view(Watched(array, runs, record, path))


def _axes(
    shape: tuple[int, ...], record: Record, uses: Sequence[Use]
) -> tuple[str | None, str | None]:
    """The letters of an array, or the reason why it has none."""
    if not record.products:
        reasons = dict.fromkeys(_SEEN_IN.get(use.operation, use.operation) for use in uses)
        if reasons:
            return None, f"not in a product: {', '.join(reasons)}"
        return None, "not in a product"
    found: dict[str, str] = dict.fromkeys(record.stacked, "s")
    for letters in record.products:
        # A product from the other side has inputs and outputs the other way round.
        fit = next((one for one in (letters, _swapped(letters)) if _agree(found, one)), None)
        if fit is None or "?" in fit.values():
            seen = " and ".join(dict.fromkeys(_shown(shape, one) for one in record.products))
            return None, f"uses that contradict each other: {seen}"
        found.update(fit)
    if {found.get(side) for side in record.looked_up} == {"o"}:
        found = _swapped(found)
    if {found.get(side) for side in record.looked_up} == {"i"}:
        found |= dict.fromkeys(record.looked_up, "e")
    letters = _shown(shape, found)
    # An axis of size one, or one that is summed on its own, is what the others lack.
    letters = letters.replace("-", "o" if "o" not in letters else "i", 1).replace("-", "i")
    if "o" not in letters:
        return None, f"a product that keeps none of its axes ({letters})"
    if not {*letters} & {*"ie"}:
        return None, f"a product that sums over none of its axes ({letters})"
    return letters, None


_SEEN_IN = {
    **dict.fromkeys(("add", "sub", "add_any"), "added"),
    **dict.fromkeys(("mul", "div"), "multiplied entry by entry"),
    "broadcast_in_dim": "repeated, to be added or multiplied entry by entry",
}


def _agree(found: Mapping[str, str], letters: Mapping[str, str]) -> bool:
    return all(found.get(side, letter) == letter for side, letter in letters.items())


def _swapped(letters: Mapping[str, str]) -> dict[str, str]:
    return {side: {"i": "o", "o": "i"}.get(letter, letter) for side, letter in letters.items()}


def _shown(shape: tuple[int, ...], letters: Mapping[str, str]) -> str:
    return "".join(letters.get(str(axis), "-") for axis in range(len(shape)))

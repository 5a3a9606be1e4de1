"""Views of the weight of an adapter as a whole, for laws that are not `W + B A`.

The adapter's own `forward` computes the products. `forward` multiplies vectors of all inputs, and
its transpose vectors of all outputs, so the axes of `x` are brought into the order of such vectors.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jno.lora import merge_lora

from .._boxes import axes_with
from ._adapted_layers import columns, matrix_of, matrix_shape, times_inputs, times_outputs
from ._runs import Run, RunsView, rearranged
from ._view import Declined, Dot, Lookup


class Whole(RunsView):
    """The weight of an adapter, whose axes were moved, joined or split.

    - `adapter`: the adapter, whose base is one layer or a stack of layers.
    - `runs`: as of `RunsView`. Their sides are `i`, `o`, and a number for each axis of the stack.
    """

    adapter: Any
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def dense(self) -> Array:
        runs = self.runs_along(range(self.ndim))
        matrix = matrix_of(self.adapter, merge_lora(self.adapter))
        return rearranged(matrix, _as_stored(runs), runs).reshape(self.shape).astype(self.dtype)

    def cast(self, dtype: Any) -> "Whole":
        return dataclasses.replace(self, dtype=dtype)

    def cut(self, axis: int, start: Any, size: int) -> Any:
        number = self._stack_axis(axis)
        if number is None:
            return super().cut(axis, start, size)
        adapter = _map_arrays(
            lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=number), self.adapter
        )
        view = dataclasses.replace(self, adapter=adapter)
        return view.with_axis(axis, (Run(str(number), 1, size),) if size > 1 else ())

    def looked_up(self, lookup: Lookup) -> Any:
        free_axes = lookup.free_axes(self.ndim)
        sides = [[self._whole_side(axis) for axis in axes] for axes in (lookup.axes, free_axes)]
        if sides != [["i"], ["o"]]:
            return super().looked_up(lookup)
        places = lookup.places[0]
        stack = tuple(range(len(matrix_shape(self.adapter)) - 2))  # of one layer
        layer = _map_arrays(lambda x: jnp.squeeze(x, stack), self.adapter)
        rows = columns(layer, places.reshape(-1))
        if rows is None:
            return Declined(f"{self.name} has no fast path here")
        output_axis = lookup.result_axes(self.ndim).index(free_axes[0])
        rows = rows.reshape(*places.shape, rows.shape[-1]).astype(lookup.out.dtype)
        rows = jnp.moveaxis(rows, -1, output_axis)
        if lookup.in_bounds is None:
            return rows
        # The operation itself fills places that are out of bounds with its own number.
        filled = lookup.gather(jnp.zeros(self.shape, lookup.out.dtype))
        return jnp.where(jnp.expand_dims(lookup.in_bounds, output_axis), rows, filled)

    def dot(self, dot: Dot) -> Array | Declined:
        product = _Product(
            self.runs_along(dot.weight_axes.summed),
            self.runs_along(dot.weight_axes.batch),
            self.runs_along(dot.weight_axes.free(self.ndim)),
            Run("x", 1, math.prod(dot.x.shape[axis] for axis in dot.x_axes.free(dot.x.ndim))),
            matrix_shape(self.adapter),
        )
        side, stack_sizes = _summed_side(product), _stack_sizes(product)
        reason = _why_not(product, side, stack_sizes, dot.precision)
        if reason is not None:
            return Declined(reason)
        x = _as_vectors(product, dot, [size for size in stack_sizes if size > 1])
        # A product may be wider than its factors: `preferred_element_type`.
        x = x.astype(functools.reduce(np.promote_types, (x.dtype, self.dtype, dot.out.dtype)))
        y = _multiplied(self.adapter, side, x, [size > 1 for size in stack_sizes], dot.precision)
        if y is None:
            return Declined(f"{self.name} has no fast path here")
        return _as_result(product, dot, y)

    def scanned(self) -> tuple[Any, Callable[[Any], "Whole"]] | None:
        number = self._stack_axis(0)
        if number is None:
            return None
        arrays, static = eqx.partition(self.adapter, eqx.is_array)
        moved = jax.tree.map(lambda x: jnp.moveaxis(x, number, 0), arrays)

        def renumbered(run: Run) -> Run:
            is_later = run.side not in "io" and int(run.side) > number
            return run._replace(side=str(int(run.side) - 1)) if is_later else run

        runs = tuple(tuple(map(renumbered, axis_runs)) for axis_runs in self.runs[1:])

        def slice_of(arrays: Any) -> Whole:
            return dataclasses.replace(self, adapter=eqx.combine(arrays, static), runs=runs)

        return moved, slice_of

    def _whole_side(self, axis: int) -> str | None:
        """The side all of whose places the axis counts, in their order."""
        *stack, outputs, inputs = matrix_shape(self.adapter)
        sizes = {"o": outputs, "i": inputs} | {str(n): size for n, size in enumerate(stack)}
        sides = (side for side, size in sizes.items() if self.runs[axis] == (Run(side, 1, size),))
        return next(sides, None)

    def _stack_axis(self, axis: int) -> int | None:
        side = self._whole_side(axis)
        return None if side in (None, "i", "o") else int(side)


def whole_view(adapter: Any, kinds: str, weight: Array, name: str) -> Whole:
    """The view of the weight of an adapter, as the model reads it."""
    runs: list[tuple[Run, ...]] = []
    for axis, (kind, size) in enumerate(zip(kinds, weight.shape, strict=True)):
        if kind == "s":
            run = Run(str(kinds[:axis].count("s")), 1, size)
        else:
            later_axes = [n for n in axes_with(kind, kinds) if n > axis]
            run = Run(kind, math.prod(weight.shape[n] for n in later_axes), size)
        runs.append((run,) if size > 1 else ())
    return Whole(adapter, tuple(runs), weight.dtype, name)


def _map_arrays(f: Callable[[Array], Array], adapter: Any) -> Any:
    return jax.tree.map(lambda leaf: f(leaf) if eqx.is_array(leaf) else leaf, adapter)


class _Product(NamedTuple):
    """The runs of the weight's axes, by their role, and one run for all free axes of `x`.

    - `shape`: the shape of the adapter's matrix, with the axes of a stack.
    """

    summed: list[Run]
    batch: list[Run]
    free: list[Run]
    vectors: Run
    shape: tuple[int, ...]


def _summed_side(product: _Product) -> str | None:
    """The side that is summed, `i` or `o`; `None` if the sum is over other axes."""
    sides = {run.side for run in product.summed}
    if not sides:  # a sum over an axis of size one has no runs
        sides = {side for side, size in zip("oi", product.shape[-2:], strict=True) if size == 1}
    return sides.pop() if sides in ({"i"}, {"o"}) else None


def _stack_sizes(product: _Product) -> list[int]:
    """How many slices are in batch, for each axis of the adapter's stack."""
    stack = map(str, range(len(product.shape) - 2))
    return [_count(run for run in product.batch if run.side == side) for side in stack]


def _why_not(
    product: _Product, side: str | None, stack_sizes: list[int], precision: Any
) -> str | None:
    """Why the adapter cannot compute the product."""
    *stack, outputs, inputs = product.shape
    if side is None or any(run.side in "io" for run in product.batch):
        return "a sum over other axes than all inputs or all outputs"
    if any(n not in (1, size) for n, size in zip(stack_sizes, stack, strict=True)):
        return "a product that has a part of a stack as its batch"
    if _count(product.summed) != (inputs if side == "i" else outputs):
        return "a sum over a part of the inputs or outputs"
    if precision is not None and _name_of(precision) is None:
        return f"a product with the precision {precision}"
    return None


def _as_vectors(product: _Product, dot: Dot, stack_sizes: list[int]) -> Array:
    """`x` as `(*stack, vectors, summed)`, in the order in which the adapter has them."""
    x = dot.x.transpose([*dot.x_axes.batch, *dot.x_axes.free(dot.x.ndim), *dot.x_axes.summed])
    runs = [*product.batch, product.vectors, *product.summed]
    order = [*_as_stored(product.batch), product.vectors, *_as_stored(product.summed)]
    x = rearranged(x, runs, order)
    return x.reshape(*stack_sizes, product.vectors.size, _count(product.summed))


def _as_result(product: _Product, dot: Dot, y: Array) -> Array:
    """The result of the product, from `y` `(*stack, vectors, the other side)`."""
    weight_runs = _as_stored([*product.batch, *product.free])
    stack = [run for run in weight_runs if run.side not in "io"]
    features = [run for run in weight_runs if run.side in "io"]
    vectors, free = [product.vectors], product.free
    order = product.batch + (free + vectors if dot.weight_first else vectors + free)
    y = rearranged(y, [*stack, *vectors, *features], order)
    return y.reshape(dot.out.shape).astype(dot.out.dtype)


def _as_stored(runs: Iterable[Run]) -> list[Run]:
    """Runs in the order of a matrix: the stack, the outputs, the inputs, slow runs first."""
    kinds = {"o": 1, "i": 2}
    return sorted(runs, key=lambda run: (kinds.get(run.side, 0), run.side, -run.stride))


def _count(runs: Iterable[Run]) -> int:
    return math.prod(run.size for run in runs)


def _name_of(precision: Any) -> str | None:
    """The name for `default_matmul_precision`, if both sides have one precision that it knows."""
    first, second = precision if isinstance(precision, tuple) else (precision, precision)
    is_known = first == second and isinstance(first, lax.Precision)
    return first.name.lower() if is_known else None


def _multiplied(
    adapter: Any, side: str | None, x: Array, has_axis: Sequence[bool], precision: Any
) -> Array | None:
    """Vectors times the weight; `None` if the adapter has no fast path.

    - `has_axis`: for each axis of the adapter's stack, whether `x` has it too.
    """
    product: Any = times_inputs if side == "i" else times_outputs
    for x_has_axis in reversed(has_axis):
        product = eqx.filter_vmap(product, in_axes=(eqx.if_array(0), 0 if x_has_axis else None))
    if precision is None:
        return product(adapter, x)
    with jax.default_matmul_precision(_name_of(precision)):
        return product(adapter, x)

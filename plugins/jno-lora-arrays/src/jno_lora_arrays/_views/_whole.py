"""Views of an adapter's weight as a whole, whose products `forward` or its transpose computes."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from jno.lora import merge_lora
from jno_lora_zoo import Method

from .._box import axes_with
from ._adapted_layers import columns, matrix_of, matrix_shape, times_inputs, times_outputs
from ._runs import Run, RunsView, rearranged
from ._view import DeclinedError, Dot, Lookup, Result, View


class Whole(RunsView):
    """The weight of an adapter, whose axes were moved, joined or split.

    - `adapter`: the adapter, whose base is one layer or a stack of layers.
    - `runs`: as in `RunsView`. Their sides are `i`, `o`, and a number for each axis of the stack.
    """

    name: str = eqx.field(static=True)
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    adapter: Method
    dtype: np.dtype = eqx.field(static=True)

    def dense(self) -> Array:
        runs = self.runs_along(range(self.ndim))
        matrix = matrix_of(self.adapter, merge_lora(self.adapter))
        return rearranged(matrix, _as_stored(runs), runs).reshape(self.shape).astype(self.dtype)

    def cast(self, dtype: np.dtype) -> "Whole":
        return dataclasses.replace(self, dtype=dtype)

    def cut(self, axis: int, start: int | Array, size: int) -> View:
        number = self._stack_axis(axis)
        if number is None:
            return super().cut(axis, start, size)
        adapter = _map_arrays(
            lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=number), self.adapter
        )
        view = dataclasses.replace(self, adapter=adapter)
        return view.with_axis(axis, (Run(str(number), 1, size),) if size > 1 else ())

    def looked_up(self, lookup: Lookup) -> Result:
        free_axes = lookup.free_axes(self.ndim)
        sides = [[self._whole_side(axis) for axis in axes] for axes in (lookup.axes, free_axes)]
        if sides != [["i"], ["o"]]:
            return super().looked_up(lookup)
        places = lookup.places[0]
        stack = tuple(range(len(matrix_shape(self.adapter)) - 2))  # of one layer
        layer = _map_arrays(lambda x: jnp.squeeze(x, stack), self.adapter)
        rows = columns(layer, places.reshape(-1))
        output_axis = lookup.result_axes(self.ndim).index(free_axes[0])
        rows = rows.reshape(*places.shape, rows.shape[-1]).astype(lookup.out.dtype)
        rows = jnp.moveaxis(rows, -1, output_axis)
        if lookup.in_bounds is None:
            return rows
        # The operation itself puts its fill value at places that are out of bounds.
        filled = lookup.gather(jnp.zeros(self.shape, lookup.out.dtype))
        return jnp.where(jnp.expand_dims(lookup.in_bounds, output_axis), rows, filled)

    def dot(self, dot: Dot) -> Array:
        product = _Product(
            self.runs_along(dot.weight_axes.summed),
            self.runs_along(dot.weight_axes.batch),
            self.runs_along(dot.weight_axes.free(self.ndim)),
            Run("x", 1, math.prod(dot.x.shape[axis] for axis in dot.x_axes.free(dot.x.ndim))),
        )
        side, stack_sizes = _side_and_stack(product, matrix_shape(self.adapter))
        precision = _precision_context(dot.precision)
        x = _as_vectors(product, dot, [size for size in stack_sizes if size > 1])
        # A product may be wider than its factors: `preferred_element_type`.
        x = x.astype(functools.reduce(np.promote_types, (x.dtype, self.dtype, dot.out.dtype)))
        times = times_inputs if side == "i" else times_outputs
        for size in reversed(stack_sizes):
            times = eqx.filter_vmap(times, in_axes=(eqx.if_array(0), 0 if size > 1 else None))
        with precision:
            y = times(self.adapter, x)
        return _as_result(product, dot, y)

    def scanned(self) -> tuple[PyTree, Callable[[PyTree], "Whole"]]:
        number = self._stack_axis(0)
        if number is None:
            raise DeclinedError("a scan over inputs or outputs")
        arrays, static = eqx.partition(self.adapter, eqx.is_array)
        moved = jax.tree.map(lambda x: jnp.moveaxis(x, number, 0), arrays)

        def renumbered(run: Run) -> Run:
            is_later = run.side not in "io" and int(run.side) > number
            return run._replace(side=str(int(run.side) - 1)) if is_later else run

        runs = tuple(tuple(map(renumbered, axis_runs)) for axis_runs in self.runs[1:])
        return moved, lambda slices: dataclasses.replace(
            self, adapter=eqx.combine(slices, static), runs=runs
        )

    def _whole_side(self, axis: int) -> str | None:
        """The side that the axis covers completely and in order, or `None`."""
        *stack, outputs, inputs = matrix_shape(self.adapter)
        sizes = {"o": outputs, "i": inputs} | {str(n): size for n, size in enumerate(stack)}
        sides = (side for side, size in sizes.items() if self.runs[axis] == (Run(side, 1, size),))
        return next(sides, None)

    def _stack_axis(self, axis: int) -> int | None:
        side = self._whole_side(axis)
        return None if side in (None, "i", "o") else int(side)


def whole_view(name: str, weight: Array, adapter: Method, kinds: str) -> Whole:
    runs: list[tuple[Run, ...]] = []
    for axis, (kind, size) in enumerate(zip(kinds, weight.shape, strict=True)):
        if kind == "s":
            run = Run(str(kinds[:axis].count("s")), 1, size)
        else:
            later_axes = [n for n in axes_with(kind, kinds) if n > axis]
            run = Run(kind, math.prod(weight.shape[n] for n in later_axes), size)
        runs.append((run,) if size > 1 else ())
    return Whole(name, tuple(runs), adapter, weight.dtype)


def _map_arrays(f: Callable[[Array], Array], adapter: Method) -> Method:
    return jax.tree.map(lambda leaf: f(leaf) if eqx.is_array(leaf) else leaf, adapter)


class _Product(NamedTuple):
    """The runs of the weight's axes, by their role, and one run for all free axes of `x`."""

    summed: list[Run]
    batch: list[Run]
    free: list[Run]
    vectors: Run


def _side_and_stack(product: _Product, shape: tuple[int, ...]) -> tuple[str, list[int]]:
    """The summed side, and how many slices are in batch for each axis of the adapter's stack."""
    *stack, outputs, inputs = shape
    sizes = {"o": outputs, "i": inputs}
    # A sum over an axis of size one has no runs.
    sides = {run.side for run in product.summed} or {side for side in sizes if sizes[side] == 1}
    if sides not in ({"i"}, {"o"}) or any(run.side in "io" for run in product.batch):
        raise DeclinedError("a sum over other axes than all inputs or all outputs")
    stack_sides = map(str, range(len(stack)))
    counts = [_count(run for run in product.batch if run.side == side) for side in stack_sides]
    if any(count not in (1, size) for count, size in zip(counts, stack, strict=True)):
        raise DeclinedError("a product that has a part of a stack as its batch")
    side = sides.pop()
    if _count(product.summed) != sizes[side]:
        raise DeclinedError("a sum over a part of the inputs or outputs")
    return side, counts


def _as_vectors(product: _Product, dot: Dot, stack_sizes: list[int]) -> Array:
    """`x` as `(*stack, vectors, summed)`, in the adapter's order."""
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


def _precision_context(precision: lax.PrecisionLike) -> contextlib.AbstractContextManager[object]:
    """The context in which every product has this precision of `dot_general`."""
    if precision is None:
        return contextlib.nullcontext()
    pair: Any = precision if isinstance(precision, tuple) else (precision, precision)
    first, second = pair
    if first != second or not isinstance(first, lax.Precision):
        raise DeclinedError(f"a product with the precision {precision}")
    return jax.default_matmul_precision(first.name.lower())

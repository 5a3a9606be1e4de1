"""Views of the weight of an adapter as a whole, for laws that are not `W + B A`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jno.lora import merge_lora

from ._adapted_layers import Axis, columns, matrix_of, matrix_shape
from ._runs import Run, RunsView, joint, rearranged
from ._view import Declined, Dot, Lookup
from ._whole_dot import as_stored, dot_by_adapter


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
        runs = joint(self.runs)
        matrix = matrix_of(self.adapter, merge_lora(self.adapter))
        return rearranged(matrix, as_stored(runs), runs).reshape(self.shape).astype(self.dtype)

    def cast(self, dtype: Any) -> "Whole":
        return dataclasses.replace(self, dtype=dtype)

    def cut(self, axis: int, start: Any, size: int) -> Any:
        number = self._stack_axis(axis)
        if number is None:
            return super().cut(axis, start, size)
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        adapter = _map_arrays(functools.partial(cut, axis=number), self.adapter)
        view = dataclasses.replace(self, adapter=adapter)
        return view.with_axis(axis, (Run(str(number), 1, size),) if size > 1 else ())

    def looked_up(self, lookup: Lookup) -> Any:
        free_axes = lookup.free_axes(self.ndim)
        sides = [[self._whole_side(axis) for axis in axes] for axes in (lookup.axes, free_axes)]
        if sides != [["i"], ["o"]]:
            return super().looked_up(lookup)
        places = lookup.places[0]
        rows = columns(_only_layer(self.adapter), places.reshape(-1))
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
        return dot_by_adapter(self.adapter, self, dot)

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


def whole_view(adapter: Any, axes: Sequence[Axis], dtype: Any, name: str) -> Whole:
    """The view of the weight of an adapter, as the model reads it."""
    runs: list[tuple[Run, ...]] = []
    stack_axes = 0
    for position, (kind, size) in enumerate(axes):
        side, stride = kind, 1
        if kind == "s":
            side, stack_axes = str(stack_axes), stack_axes + 1
        else:
            stride = math.prod(axis.size for axis in axes[position + 1 :] if axis.kind == kind)
        runs.append((Run(side, stride, size),) if size > 1 else ())
    return Whole(adapter, tuple(runs), dtype, name)


def _map_arrays(f: Callable[[Array], Array], adapter: Any) -> Any:
    arrays, static = eqx.partition(adapter, eqx.is_array)
    return eqx.combine(jax.tree.map(f, arrays), static)


def _only_layer(adapter: Any) -> Any:
    """The adapter of the only layer in a stack."""
    for _ in matrix_shape(adapter)[:-2]:
        adapter = _map_arrays(functools.partial(jnp.squeeze, axis=0), adapter)
    return adapter

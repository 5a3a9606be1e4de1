"""Views of the weight of an adapter as a whole, for laws that are not `W + B A`."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jno.lora import merge_lora

from ._kinds import columns, matrix_of, matrix_shape, times_inputs, times_outputs
from ._runs import Run, RunsView, joint
from ._views import Declined, Dot, Lookup


class Whole(RunsView):
    """The weight of an adapter, whose axes were moved, joined or split.

    - `adapter`: the adapter, whose base is one layer or a stack of layers.
    - `runs`: as of `RunsView`, with a number for each axis of the stack.
    """

    adapter: Any
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def dense(self) -> Array:
        runs = joint(self.runs)
        stored = sorted(runs, key=_as_stored)
        split = matrix_of(merge_lora(self.adapter)).reshape([size for *_, size in stored])
        moved = split.transpose([stored.index(run) for run in runs])
        return moved.reshape(self.shape).astype(self.dtype)

    def cast(self, dtype: Any) -> "Whole":
        return dataclasses.replace(self, dtype=dtype)

    def cut(self, axis: int, start: Any, size: int) -> Any:
        number = self._stack_axis(axis)
        if number is None:
            return super().cut(axis, start, size)
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        adapter = _on_arrays(functools.partial(cut, axis=number), self.adapter)
        runs = list(self.runs)
        runs[axis] = ((str(number), 1, size),) if size > 1 else ()
        return dataclasses.replace(self, adapter=adapter, runs=tuple(runs))

    def looked_up(self, lookup: Lookup) -> Any:
        axis = lookup.axes[0]
        is_lookup = self.ndim == 2 and len(lookup.axes) == 1
        if not is_lookup or [self._side(axis), self._side(1 - axis)] != ["i", "o"]:
            return super().looked_up(lookup)
        (places,) = lookup.places
        found = columns(_one_layer(self.adapter), places.reshape(-1))
        if found is None:
            return Declined(f"{self.name} has no fast path here")
        found = found.reshape(*places.shape, found.shape[-1]).astype(lookup.out.dtype)
        (at,) = (place for place in range(len(lookup.out.shape)) if place not in lookup.at)
        found = jnp.moveaxis(found, -1, at)
        if lookup.is_there is None:
            return found
        # The operation itself says with which number it fills places that are out of bounds.
        filled = lookup.gather(jnp.zeros(self.shape, lookup.out.dtype))
        return jnp.where(jnp.expand_dims(lookup.is_there, at), found, filled)

    def dot(self, dot: Dot) -> Any:
        summed, batch = (joint(self.runs[axis] for axis in axes) for axes in dot.of_weight)
        *stack_sizes, outputs, inputs = matrix_shape(self.adapter)
        sizes = {"i": inputs, "o": outputs}
        stack = [str(number) for number in range(len(stack_sizes))]
        # A sum over an axis of size one has no runs.
        sides = {side for side, *_ in summed} or {side for side in "io" if sizes[side] == 1}
        if len(sides) != 1 or not sides <= {*"io"} or not {run[0] for run in batch} <= {*stack}:
            return Declined("a sum over other axes than all inputs or all outputs")
        in_batch = [math.prod(n for number, _, n in batch if number == one) for one in stack]
        if any(n not in (1, size) for n, size in zip(in_batch, stack_sizes, strict=True)):
            return Declined("a product that has a part of a stack as its batch")
        (side,) = sides
        if math.prod(size for *_, size in summed) != sizes[side]:
            return Declined("a sum over a part of the inputs or outputs")
        if not _is_usual(dot.precision):
            return Declined(f"a product with the precision {dot.precision}")
        x_free, w_free = dot.free()
        rows = math.prod(dot.x.shape[axis] for axis in x_free)
        # `x` as rows of vectors, `(*stack, rows, summed)`: its runs as the adapter has them.
        x = dot.x.transpose([*dot.of_x[1], *x_free, *dot.of_x[0]])
        here: list[Run] = [*batch, ("x", 1, rows), *summed]
        there = [*sorted(batch, key=_as_stored), ("x", 1, rows), *sorted(summed, key=_as_stored)]
        x = x.reshape([size for *_, size in here]).transpose([here.index(run) for run in there])
        x = x.reshape([*(size for size in in_batch if size > 1), rows, sizes[side]])
        # A product may be wider than its factors: `preferred_element_type`.
        dtype = functools.reduce(np.promote_types, (x.dtype, self.dtype, dot.out.dtype))
        product = times_inputs if side == "i" else times_outputs
        with _computing_in(dot.precision):
            y = _over_stack(product, self.adapter, x.astype(dtype), [n > 1 for n in in_batch])
        if y is None:
            return Declined(f"{self.name} has no fast path here")
        free = joint(self.runs[axis] for axis in w_free)
        own: list[Run] = [("x", 1, rows)]
        of_stack = sorted((run for run in (*batch, *free) if run[0] in stack), key=_as_stored)
        others = sorted((run for run in free if run[0] not in stack), key=_as_stored)
        there = [*of_stack, *own, *others]
        here = [*batch, *(free + own if dot.weight_first else own + free)]
        y = y.reshape([size for *_, size in there]).transpose([there.index(run) for run in here])
        return y.reshape(dot.out.shape).astype(dot.out.dtype)

    def scanned(self) -> tuple[Any, Callable[[Any], "Whole"]] | None:
        number = self._stack_axis(0)
        if number is None:
            return None
        arrays, rest = eqx.partition(self.adapter, eqx.is_array)
        moved = jax.tree.map(lambda x: jnp.moveaxis(x, number, 0), arrays)

        def renumbered(run: Run) -> Run:
            side, *rest = run
            is_later = side not in "io" and int(side) > number
            return (str(int(side) - 1) if is_later else side, *rest)

        runs = tuple(tuple(map(renumbered, runs)) for runs in self.runs[1:])

        def one(arrays: Any) -> Whole:
            return dataclasses.replace(self, adapter=eqx.combine(arrays, rest), runs=runs)

        return moved, one

    def _side(self, axis: int) -> str | None:
        """The side whose places the axis counts in order, all of them."""
        *stack, outputs, inputs = matrix_shape(self.adapter)
        sizes = {"o": outputs, "i": inputs} | {str(n): size for n, size in enumerate(stack)}
        whole = (side for side, size in sizes.items() if self.runs[axis] == ((side, 1, size),))
        return next(whole, None)

    def _stack_axis(self, axis: int) -> int | None:
        side = self._side(axis)
        return None if side in (None, "i", "o") else int(side)


def whole_view(adapter: Any, axes: Sequence[tuple[str, int]], dtype: Any, name: str) -> Whole:
    """The view of a weight with these axes, each of a letter (`s`, `o` or `i`) and a size."""
    runs: list[tuple[Run, ...]] = []
    stack = 0
    for place, (letter, size) in enumerate(axes):
        side, stride = letter, 1
        if letter == "s":
            side, stack = str(stack), stack + 1
        else:
            stride = math.prod(n for other, n in axes[place + 1 :] if other == letter)
        runs.append(((side, stride, size),) if size > 1 else ())
    return Whole(adapter, tuple(runs), dtype, name)


def _as_stored(run: Run) -> tuple[int, str, int]:
    """The order of runs in a matrix: the stack, the outputs, the inputs; slow runs first."""
    side, stride, _ = run
    return ({"o": 1, "i": 2}.get(side, 0), side, -stride)


def _on_arrays(f: Callable[[Array], Array], adapter: Any) -> Any:
    arrays, rest = eqx.partition(adapter, eqx.is_array)
    return eqx.combine(jax.tree.map(f, arrays), rest)


def _one_layer(adapter: Any) -> Any:
    """The adapter of the only layer in a stack."""
    for _ in matrix_shape(adapter)[:-2]:
        adapter = _on_arrays(functools.partial(jnp.squeeze, axis=0), adapter)
    return adapter


def _is_usual(precision: Any) -> bool:
    """Whether both sides of a product have one precision, as `default_matmul_precision` sets."""
    pair = precision if isinstance(precision, tuple) else (precision, precision)
    return precision is None or (pair[0] == pair[1] and isinstance(pair[0], lax.Precision))


def _computing_in(precision: Any) -> contextlib.AbstractContextManager[Any]:
    if precision is None:
        return contextlib.nullcontext()
    one = precision[0] if isinstance(precision, tuple) else precision
    return jax.default_matmul_precision(one.name.lower())


def _over_stack(
    product: Callable[..., Any], adapter: Any, x: Array, is_mapped: Sequence[bool]
) -> Array | None:
    """`product(adapter, x)`, mapped over the axes of a stack in front of the adapter's arrays.

    - `is_mapped`: for each of these axes, whether `x` has it too.
    """
    declined: list[bool] = []

    def one(adapter: Any, x: Array) -> Array:
        y = product(adapter, x)
        declined.append(y is None)
        return x if y is None else y

    mapped = one
    for has_axis in reversed(is_mapped):
        mapped = eqx.filter_vmap(mapped, in_axes=(eqx.if_array(0), 0 if has_axis else None))
    y = mapped(adapter, x)
    return None if any(declined) else y

"""A view of a bare array that notes how a function uses each of its axes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from .._views import Conv, Declined, Dot, Lookup, Ragged, Run, RunsView, Virtual, of_view


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The uses of one array. An axis is known by its number, as text.

    - `products`: for each product, the letter of each axis that it used: `i`, `o`, `s`, or `?` for
        an axis with two meanings.
    - `stacked`: axes that were scanned, or taken apart by number.
    - `looked_up`: axes along which rows were looked up.
    """

    products: list[dict[str, str]] = dataclasses.field(default_factory=list)
    stacked: set[str] = dataclasses.field(default_factory=set)
    looked_up: set[str] = dataclasses.field(default_factory=set)


class Watched(RunsView):
    """A view of a bare array that notes how each axis is used. Its sides are the axes' numbers.

    - `picked`: the axes of which a list of places was looked up. They are axes of a stack, unless a
        convolution uses them.
    """

    only_watches: ClassVar[bool] = True

    array: Array
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    record: Record = eqx.field(static=True)
    name: str = eqx.field(static=True)
    picked: frozenset[str] = eqx.field(static=True, default=frozenset())

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def dense(self) -> Array:
        return self.array

    def transposed(self, order: Sequence[int]) -> Any:
        view = super().transposed(order)
        return dataclasses.replace(view, array=self.array.transpose(order))

    def reshaped(self, shape: Sequence[int]) -> Any:
        view = super().reshaped(shape)
        if isinstance(view, Declined):
            return view
        return dataclasses.replace(view, array=self.array.reshape(shape))

    def cast(self, dtype: Any) -> "Watched":
        return dataclasses.replace(self, array=self.array.astype(dtype))

    def cut(self, axis: int, start: Any, size: int) -> "Watched":
        if size > 1:
            axis_runs = self._resized(axis, size)
        else:
            axis_runs = ()
            if sum(n > 1 for n in self.shape) > 2:  # a row of a matrix may be anything
                self.record.stacked.update(self._sides([axis]))
        array = lax.dynamic_slice_in_dim(self.array, start, size, axis)
        return self._with_axis(array, axis, axis_runs)

    def looked_up(self, lookup: Lookup) -> Any:
        rows = lookup.gather(self.array)
        others = lookup.other_axes(self.ndim)
        sides = self._sides(lookup.axes)
        if sum(self.shape[axis] > 1 for axis in others) < 2:
            self.record.looked_up.update(sides)
            outputs = dict.fromkeys(self._sides(others), "o")
            self.record.products.append({**dict.fromkeys(sides, "i"), **outputs})
            return rows
        is_list = len(sides) == len(lookup.axes) == len(lookup.at) == 1
        is_list = is_list and rows.shape[lookup.at[0]] > 1
        if not is_list:
            self.record.stacked.update(sides)
        runs = []
        for axis, size in zip(lookup.result_axes(self.ndim), rows.shape, strict=True):
            if axis is not None:
                runs.append(self.runs[axis])
            elif is_list:
                runs.append(self._resized(lookup.axes[0], size))
            else:
                runs.append((Run("?", 1, size),))
        picked = self.picked | sides if is_list else self.picked
        return dataclasses.replace(self, array=rows, runs=tuple(runs), picked=picked)

    def summed(self, axes: Sequence[int]) -> "Watched":
        # As a product with ones: an axis that the other uses leave open is an input.
        runs = tuple(runs for axis, runs in enumerate(self.runs) if axis not in axes)
        return dataclasses.replace(self, array=self.array.sum(axes), runs=runs)

    def padded(self, axis: int, before: int, after: int) -> "Watched":
        widths = [(0, 0)] * self.ndim
        widths[axis] = (before, after)
        array = jnp.pad(self.array, widths)
        return self._with_axis(array, axis, self._resized(axis, array.shape[axis]))

    def dot(self, dot: Dot) -> Array:
        self.record.stacked.update(self.picked)
        summed, batch = dot.weight_axes
        free = dot.weight_axes.free(self.ndim)
        self._note({"i": summed, "s": batch, "o": free}, ignored=self.picked)
        return dot.applied_to(self.array)

    def conv(self, conv: Conv) -> Array:
        outputs, *inputs = conv.kernel_axes
        self._note({"o": [outputs], "i": inputs})
        return jnp.zeros(conv.out.shape, conv.out.dtype)

    def ragged(self, ragged: Ragged) -> Array:
        self._note({"s": [0], "i": [1], "o": [2]})
        return jnp.zeros(ragged.out.shape, ragged.out.dtype)

    def scanned(self) -> tuple[Any, Callable[[Any], "Watched"]]:
        self.record.stacked.update(self._sides([0]))
        return self.array, lambda x: dataclasses.replace(self, array=x, runs=self.runs[1:])

    def specs(self, spec: PartitionSpec) -> None:
        return None  # each device has other sizes than the runs

    def _with_axis(self, array: Array, axis: int, axis_runs: tuple[Run, ...]) -> "Watched":
        runs = (*self.runs[:axis], axis_runs, *self.runs[axis + 1 :])
        return dataclasses.replace(self, array=array, runs=runs)

    def _sides(self, axes: Sequence[int]) -> set[str]:
        return {run.side for run in self.runs_along(axes)}

    def _resized(self, axis: int, size: int) -> tuple[Run, ...]:
        """The runs of an axis with some of the places: inputs or outputs, as all places are."""
        sides = self._sides([axis])
        return (Run(sides.pop() if len(sides) == 1 else "?", 1, size),)

    def _note(
        self, axes: Mapping[str, Sequence[int]], ignored: frozenset[str] = frozenset()
    ) -> None:
        letters: dict[str, str] = {}
        for letter, letter_axes in axes.items():
            for side in (run.side for run in self.runs_along(letter_axes)):
                if letters.setdefault(side, letter) != letter:
                    letters[side] = "?"  # two fractions of the axis have two meanings
        self.record.products.append(
            {side: letter for side, letter in letters.items() if side not in {"?", *ignored}}
        )


def watched(path: str, array: Array, record: Record) -> Virtual:
    """A virtual weight that notes the uses of the array at this path."""
    sizes = enumerate(array.shape)
    runs = tuple((Run(str(axis), 1, size),) if size > 1 else () for axis, size in sizes)
    return of_view(Watched(array, runs, record, path))

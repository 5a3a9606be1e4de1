"""A view of a bare array that records how a function uses each of its axes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._views import Conv, Dot, Lookup, Ragged, Result, Run, RunsView, Virtual, of_view


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The uses of an array, whose axes are named by their numbers, as text.

    - `products`: for each product, the letter of each axis that it used: `i`, `o`, `s`, or `?` for
        an axis with two meanings.
    - `stacked`: axes that were scanned, or taken apart by number.
    - `looked_up`: axes along which rows were looked up.
    """

    products: list[dict[str, str]] = dataclasses.field(default_factory=list)
    stacked: set[str] = dataclasses.field(default_factory=set)
    looked_up: set[str] = dataclasses.field(default_factory=set)


class Watched(RunsView):
    """A view of a bare array, without its values, that records how a function uses each axis.

    - `runs`: the sides are the numbers of the array's axes, as text.
    - `picked`: the axes along which a list of places was looked up. They are axes of a stack,
        unless a convolution uses them.
    """

    only_watches: ClassVar[bool] = True

    name: str = eqx.field(static=True)
    runs: tuple[tuple[Run, ...], ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    record: Record = eqx.field(static=True)
    picked: frozenset[str] = eqx.field(static=True, default=frozenset())

    def dense(self) -> Array:
        return jnp.zeros(self.shape, self.dtype)

    def cast(self, dtype: np.dtype) -> "Watched":
        return dataclasses.replace(self, dtype=dtype)

    def cut(self, axis: int, start: int | Array, size: int) -> "Watched":
        if size > 1:
            return self._resized(axis, size)
        if sum(n > 1 for n in self.shape) > 2:  # a row of a matrix may be anything
            self.record.stacked.update(self._sides([axis]))
        return self.with_axis(axis, ())

    def looked_up(self, lookup: Lookup) -> Result:
        free_axes, sides = lookup.free_axes(self.ndim), self._sides(lookup.axes)
        if sum(self.shape[axis] > 1 for axis in free_axes) < 2:
            self.record.looked_up.update(sides)
            self.record.products.append(
                {**dict.fromkeys(sides, "i"), **dict.fromkeys(self._sides(free_axes), "o")}
            )
            return jnp.zeros(lookup.out.shape, lookup.out.dtype)
        is_list = len(sides) == len(lookup.axes) == len(lookup.at) == 1
        is_list = is_list and lookup.out.shape[lookup.at[0]] > 1
        side = min(sides) if is_list else "?"
        if not is_list:
            self.record.stacked.update(sides)
        result_axes = zip(lookup.result_axes(self.ndim), lookup.out.shape, strict=True)
        runs = (
            (Run(side, 1, size),) if axis is None else self.runs[axis] for axis, size in result_axes
        )
        picked = self.picked | sides if is_list else self.picked
        return dataclasses.replace(self, runs=tuple(runs), picked=picked)

    def summed(self, axes: Sequence[int]) -> "Watched":
        # Like a product with ones, so the axis is an input unless another use decides.
        runs = tuple(runs for axis, runs in enumerate(self.runs) if axis not in axes)
        return dataclasses.replace(self, runs=runs)

    def padded(self, axis: int, before: int, after: int) -> "Watched":
        return self._resized(axis, before + self.shape[axis] + after)

    def dot(self, dot: Dot) -> Array:
        self.record.stacked.update(self.picked)
        summed, batch = dot.weight_axes
        letters = {"i": summed, "s": batch, "o": dot.weight_axes.free(self.ndim)}
        return self._product(dot.out, letters, ignored=self.picked)

    def conv(self, conv: Conv) -> Array:
        outputs, *inputs = conv.kernel_axes
        return self._product(conv.out, {"o": [outputs], "i": inputs})

    def ragged(self, ragged: Ragged) -> Array:
        return self._product(ragged.out, {"s": [0], "i": [1], "o": [2]})

    def scanned(self) -> tuple[Array, Callable[[Array], "Watched"]]:
        self.record.stacked.update(self._sides([0]))
        return self.dense(), lambda _: dataclasses.replace(self, runs=self.runs[1:])

    def specs(self, spec: PartitionSpec) -> None:
        return None  # on each device, the sizes differ from the runs

    def _sides(self, axes: Sequence[int]) -> set[str]:
        return {run.side for run in self.runs_along(axes)}

    def _resized(self, axis: int, size: int) -> "Watched":
        """With `size` places along an axis, which keeps its side if it has only one."""
        sides = self._sides([axis])
        return self.with_axis(axis, (Run(sides.pop() if len(sides) == 1 else "?", 1, size),))

    def _product(
        self,
        out: jax.ShapeDtypeStruct,
        axes: Mapping[str, Sequence[int]],
        ignored: frozenset[str] = frozenset(),
    ) -> Array:
        """Record a product that uses axes of the view with these letters."""
        letters: dict[str, str] = {}
        for letter, letter_axes in axes.items():
            for side in self._sides(letter_axes):
                # Two places of one axis may have two meanings.
                letters[side] = letter if letters.get(side, letter) == letter else "?"
        self.record.products.append(
            {side: letter for side, letter in letters.items() if side not in {"?", *ignored}}
        )
        return jnp.zeros(out.shape, out.dtype)


def watched(path: str, array: Array, record: Record) -> Virtual:
    sizes = enumerate(array.shape)
    runs = tuple((Run(str(axis), 1, size),) if size > 1 else () for axis, size in sizes)
    return of_view(Watched(path, runs, array.dtype, record), array.dtype)

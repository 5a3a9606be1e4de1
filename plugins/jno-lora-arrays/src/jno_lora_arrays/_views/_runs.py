"""Views that record which places of the weight each of their axes runs through."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from equinox import AbstractVar
from jaxtyping import Array

from ._view import DeclinedError, View

R = TypeVar("R", bound="RunsView")


class Run(NamedTuple):
    """Places at equal distances along one side of the weight.

    - `side`: `i` for the inputs, `o` for the outputs, or the number of an axis.
    - `stride`: the distance between neighbours.
    - `size`: the number of places.
    """

    side: str
    stride: int
    size: int


class RunsView(View):
    """A view whose axes are made of runs, the last run fastest. An axis of size 1 has no runs."""

    runs: AbstractVar[tuple[tuple[Run, ...], ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(run.size for run in runs) for runs in self.runs)

    def transposed(self: R, order: Sequence[int]) -> R:
        return dataclasses.replace(self, runs=tuple(self.runs[axis] for axis in order))

    def reshaped(self: R, shape: Sequence[int]) -> R:
        runs = _distributed(self.runs_along(range(self.ndim)), shape)
        if runs is None:
            raise DeclinedError("a reshape that splits an axis of the weight unevenly")
        return dataclasses.replace(self, runs=runs)

    def with_axis(self: R, axis: int, runs: tuple[Run, ...]) -> R:
        return dataclasses.replace(self, runs=(*self.runs[:axis], runs, *self.runs[axis + 1 :]))

    def runs_along(self, axes: Iterable[int]) -> list[Run]:
        return [run for axis in axes for run in self.runs[axis]]


def rearranged(array: Array, runs: Sequence[Run], order: Sequence[Run]) -> Array:
    """An array of `runs`, rearranged to an axis for each run in another order."""
    split = array.reshape([run.size for run in runs])
    return split.transpose([runs.index(run) for run in order])


def _distributed(runs: list[Run], shape: Sequence[int]) -> tuple[tuple[Run, ...], ...] | None:
    """The runs of each axis of `shape`; `None` if an axis would end inside of a run."""
    remaining, axes = list(runs), []
    for size in shape:
        axis: list[Run] = []
        while size > 1:
            run = remaining.pop(0)
            if run.size > size:
                # This axis has the slow places of the run, and the next axis has the fast places.
                fast, uneven = divmod(run.size, size)
                if uneven:
                    return None
                remaining.insert(0, run._replace(size=fast))
                run = Run(run.side, run.stride * fast, size)
            if size % run.size:
                return None
            axis.append(run)
            size //= run.size
        axes.append(_united(axis))
    return tuple(axes)


def _united(runs: list[Run]) -> tuple[Run, ...]:
    """The same places by fewer runs."""
    united: list[Run] = []
    for run in runs:
        last = united[-1] if united else None
        if last and (last.side, last.stride) == (run.side, run.stride * run.size):
            united[-1] = Run(run.side, run.stride, last.size * run.size)
        else:
            united.append(run)
    return tuple(united)

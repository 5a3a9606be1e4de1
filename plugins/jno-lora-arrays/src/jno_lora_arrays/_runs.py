"""Views that know for each axis which places of the weight it counts through."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from equinox import AbstractVar

from ._views import Declined, View

# A run of places along an axis of the view: the side that they belong to (`i`, `o`, or a number),
# the distance between neighbours on that side, and how many they are.
Run = tuple[str, int, int]


class RunsView(View):
    """A view with runs.

    - `runs`: for each axis of the view, the runs that it counts through, the last one fastest. An
        axis of size one has none.
    """

    runs: AbstractVar[tuple[tuple[Run, ...], ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(size for *_, size in runs) for runs in self.runs)

    def transposed(self, order: Sequence[int]) -> Any:
        return dataclasses.replace(self, runs=tuple(self.runs[axis] for axis in order))

    def reshaped(self, shape: Sequence[int]) -> Any:
        left, new = list(joint(self.runs)), []
        for size in shape:
            axis: list[Run] = []
            while size > 1:
                side, stride, length = left.pop(0)
                if length > size:
                    rest, uneven = divmod(length, size)
                    if uneven:
                        return Declined("a reshape that splits an axis of the weight unevenly")
                    # The slow part of the run is here, the rest goes to the next axis.
                    left.insert(0, (side, stride, rest))
                    stride, length = stride * rest, size
                if size % length:
                    return Declined("a reshape that splits an axis of the weight unevenly")
                axis.append((side, stride, length))
                size //= length
            new.append(_united(axis))
        return dataclasses.replace(self, runs=tuple(new))


def joint(runs: Iterable[Iterable[Run]]) -> list[Run]:
    """The runs of several axes in a row."""
    return [run for of_axis in runs for run in of_axis]


def _united(runs: list[Run]) -> tuple[Run, ...]:
    """The same places by fewer runs."""
    new: list[Run] = []
    for side, stride, size in runs:
        if new and new[-1][0] == side and new[-1][1] == stride * size:
            new[-1] = (side, stride, new[-1][2] * size)
        else:
            new.append((side, stride, size))
    return tuple(new)

"""Types that a method of the zoo has with the same arrays: a table says where each array goes.

An array has two descriptions, of its axes in the file and here: `"in r -> r in"` is transposed,
`"out 1 -> out"` loses an axis. The axes `out`, `in` and `r` have the sizes of the layer's matrix
and the rank; any other axis, such as `k`, has its size in the file, the same in all arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .._errors import MisfitError
from ..model.layouts import Shape
from ._conversion import Adapter, Converted, Module, Tensors, Written
from ._methods import METHODS


class Tensor(NamedTuple):
    """A tensor of PEFT: its name, and its axes there and here."""

    name: str
    axes: str

    @property
    def both_axes(self) -> tuple[list[str], list[str]]:
        """The names of the axes, PEFT's and ours."""
        theirs, arrow, ours = self.axes.partition("->")
        return theirs.split(), (ours if arrow else theirs).split()

    def read(self, array: np.ndarray) -> np.ndarray:
        """The array here."""
        theirs, ours = self.both_axes
        axes = [axis for axis in theirs if axis != "1"]
        sizes = tuple(n for axis, n in zip(theirs, array.shape, strict=True) if axis != "1")
        return array.reshape(sizes).transpose([axes.index(axis) for axis in ours])

    def write(self, array: np.ndarray) -> np.ndarray:
        """The array in the file."""
        theirs, ours = self.both_axes
        axes = [axis for axis in theirs if axis != "1"]
        array = array.transpose([ours.index(axis) for axis in axes])
        sizes = iter(array.shape)
        return array.reshape([1 if axis == "1" else next(sizes) for axis in theirs])

    def shape(self, sizes: dict[str, int], given: Shape | None) -> Shape:
        """PEFT's shape, by the sizes of the axes; sizes that are missing come from `given`."""
        theirs, _ = self.both_axes
        if given is not None and len(given) == len(theirs):
            for axis, size in zip(theirs, given, strict=True):
                sizes.setdefault(axis, size)
        return tuple(sizes.get(axis, 0) for axis in theirs)


@dataclasses.dataclass(frozen=True)
class SameArrays:
    """A method with PEFT's arrays: its variant, and the tensors by the names of its fields.

    - `alpha`: the alpha here, if it is not the file's.
    """

    variant: str
    tensors: Mapping[str, Tensor]
    alpha: float | None = None

    def read(self, m: Module) -> Converted:
        """The adapter here of one module of a file. **Raises:** `MisfitError`."""
        outputs, inputs = m.layout.matrix
        if METHODS[self.variant].effective_rank(m.rank, outputs, inputs) != m.rank:
            raise MisfitError(
                f"its rank {m.rank} is more than the ({outputs}, {inputs}) of its weight"
            )
        sizes = {"1": 1, "out": outputs, "in": inputs, "r": m.rank}
        shapes: dict[str, Shape] = {}
        for tensor in self.tensors.values():
            array = m.tensors.get(tensor.name)
            shapes[tensor.name] = tensor.shape(sizes, None if array is None else array.shape)
        m.check(shapes)
        state = {field: t.read(m.tensors[t.name]) for field, t in self.tensors.items()}
        return Converted(self.variant, m.rank, m.alpha if self.alpha is None else self.alpha, state)

    def arrays(self, adapter: Adapter) -> Tensors:
        """The tensors of one adapter."""
        return {t.name: t.write(adapter.state[field]) for field, t in self.tensors.items()}

    def write(self, adapter: Adapter) -> Written:
        """One adapter as PEFT has it, without settings."""
        return adapter.written(self.arrays(adapter))

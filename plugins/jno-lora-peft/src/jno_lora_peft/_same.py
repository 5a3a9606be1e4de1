"""Types that a method of the zoo has with the same arrays: a table says where each one goes.

An array has two descriptions, of its axes in the file and here: `"in r -> r in"` is transposed,
`"out 1 -> out"` loses an axis. The axes `out`, `in` and `r` are those of the layer's matrix and the
rank; others, such as `k`, have the size that they have in the file, the same in all arrays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._layouts import Layout, Shape
from ._module import Converted, Module
from ._updates import MisfitError, Parts


class Tensor(NamedTuple):
    """A tensor of PEFT: its name, and its axes there and here."""

    name: str
    axes: str

    @property
    def both(self) -> tuple[list[str], list[str]]:
        """The names of the axes, PEFT's and ours."""
        theirs, _, ours = self.axes.partition("->")
        return theirs.split(), (ours or theirs).split()

    def read(self, array: np.ndarray) -> np.ndarray:
        """The array here."""
        theirs, ours = self.both
        left = [axis for axis in theirs if axis != "1"]
        sizes = tuple(n for axis, n in zip(theirs, array.shape, strict=True) if axis != "1")
        return array.reshape(sizes).transpose([left.index(axis) for axis in ours])

    def write(self, array: np.ndarray) -> np.ndarray:
        """The array in the file."""
        theirs, ours = self.both
        left = [axis for axis in theirs if axis != "1"]
        array = array.transpose([ours.index(axis) for axis in left])
        sizes = iter(array.shape)
        return array.reshape([1 if axis == "1" else next(sizes) for axis in theirs])

    def shape(self, sizes: dict[str, int], given: Shape | None) -> Shape:
        """PEFT's shape, by the sizes of the axes; those not known yet are taken from `given`."""
        theirs, _ = self.both
        if given is not None and len(given) == len(theirs):
            for axis, size in zip(theirs, given, strict=True):
                sizes.setdefault(axis, size)
        return tuple(sizes.get(axis, 0) for axis in theirs)


class Adapter(NamedTuple):
    """One adapter here, to be written: its arrays without the axes of a stack."""

    variant: str
    state: Parts
    rank: int
    alpha: float
    layout: Layout
    has_bias: bool


class File(NamedTuple):
    """One adapter as PEFT has it. `settings` are those beside the rank and alpha."""

    rank: int
    tensors: Parts
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Same:
    """A method with PEFT's arrays.

    - `variant`: that of the method; `tensors`: by field.
    - `kinds`: the layers that PEFT has the type for.
    - `options`: the settings that PEFT gets when it is written; they must say what the arrays mean.
    - `sizes`: what else is checked, or known, of the axes before the tensors are looked at.
    """

    variant: str
    tensors: Mapping[str, Tensor]
    kinds: tuple[str, ...] = ("linear",)
    options: Callable[[Adapter], Mapping[str, Any]] = lambda adapter: {}
    alpha: Callable[[Module], float] = lambda m: m.alpha

    def read(self, m: Module) -> Converted:
        """The adapter here of one module of a file."""
        self._check(m.layout)
        outputs, inputs = m.layout.matrix
        sizes = {"1": 1, "out": outputs, "in": inputs, "r": m.rank}
        shapes = {
            tensor.name: tensor.shape(
                sizes, m.parts[tensor.name].shape if tensor.name in m.parts else None
            )
            for tensor in self.tensors.values()
        }
        m.check(shapes)
        state = {field: tensor.read(m.parts[tensor.name]) for field, tensor in self.tensors.items()}
        return Converted(self.variant, m.rank, self.alpha(m), state)

    def write(self, adapter: Adapter) -> File:
        """The tensors of one adapter, and its settings."""
        self._check(adapter.layout)
        tensors = {t.name: t.write(adapter.state[field]) for field, t in self.tensors.items()}
        return File(adapter.rank, tensors, self.options(adapter))

    def _check(self, layout: Layout) -> None:
        if layout.kind not in self.kinds or layout.groups > 1:
            raise MisfitError(f"PEFT has this type for layers of the kind {_either(self.kinds)}")


def _either(kinds: tuple[str, ...]) -> str:
    return " or ".join(kinds)

"""Types that a method of the zoo has with the same arrays: a table says where each one goes.

An array has two descriptions, of its axes in the file and here: `"in r -> r in"` is transposed,
`"out 1 -> out"` loses an axis. The axes `out`, `in` and `r` are those of the layer's matrix and the
rank; others, such as `k`, have the size that they have in the file, the same in all arrays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._layouts import METHODS, Layout, Shape
from ._module import Converted, Module
from ._updates import MisfitError, Parts, refuse_layer


class Tensor(NamedTuple):
    """A tensor of PEFT: its name, and its axes there and here."""

    name: str
    axes: str

    @property
    def both(self) -> tuple[list[str], list[str]]:
        """The names of the axes, PEFT's and ours."""
        theirs, arrow, ours = self.axes.partition("->")
        return theirs.split(), (ours if arrow else theirs).split()

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
    """One adapter here, to be written: its arrays without the axes of a stack.

    - `scale`: the factor of its update, if it is LoRA.
    - `shared`: the arrays that it shares with other adapters, by field.
    """

    variant: str
    state: Parts
    rank: int
    alpha: float
    layout: Layout
    has_bias: bool
    scale: float = 1.0
    shared: Parts = {}  # noqa: RUF012  # a `NamedTuple`, whose defaults are never changed


class File(NamedTuple):
    """One adapter as PEFT has it. `settings` are those beside the rank and alpha.

    - `alpha`: PEFT's, if it is not the alpha here.
    - `shared`: the tensors that all modules have part of, as this one needs them.
    """

    rank: int
    tensors: Parts
    settings: Mapping[str, Any]
    alpha: float | None = None
    shared: Parts = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class Same:
    """A method with PEFT's arrays.

    - `variant`: that of the method; `tensors`: by field.
    - `kinds`: the layers that PEFT has the type for; `groups`: whether with groups too.
    - `settings`: those that are written beside the rank and alpha.
    - `alpha`: ours for that of the file.
    """

    variant: str
    tensors: Mapping[str, Tensor]
    kinds: tuple[str, ...] = ("linear",)
    groups: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    alpha: Callable[[Module], float] = lambda m: m.alpha

    def read(self, m: Module) -> Converted:
        """The adapter here of one module of a file. **Raises:** `MisfitError`."""
        check_kind(m.layout, self.kinds, self.groups)
        outputs, inputs = m.layout.matrix
        if METHODS[self.variant].effective_rank(m.rank, outputs, inputs) != m.rank:
            raise MisfitError(
                f"its rank {m.rank} is more than the ({outputs}, {inputs}) of its weight"
            )
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
        """The tensors of one adapter, and its settings. **Raises:** `MisfitError`."""
        check_kind(adapter.layout, self.kinds, self.groups)
        tensors = {t.name: t.write(adapter.state[field]) for field, t in self.tensors.items()}
        return File(adapter.rank, tensors, self.settings)


def check_kind(layout: Layout, kinds: tuple[str, ...] = ("linear",), groups: bool = False) -> None:
    """**Raises:** `MisfitError` unless the layer is of one of these kinds."""
    kind = f"conv{len(layout.kernel)}d" if layout.kind == "conv" else layout.kind
    if kind not in kinds:
        raise MisfitError(
            f"PEFT has adapters of this type for {', '.join(kinds)}, and this is {kind}"
        )
    if layout.groups > 1 and not groups:
        raise MisfitError("PEFT has adapters of this type for convolutions without groups")
    refuse_layer(layout)

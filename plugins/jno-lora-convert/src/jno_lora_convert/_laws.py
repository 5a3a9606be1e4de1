"""The einsum of two factors that makes the update of a weight."""

import dataclasses
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jno_lora_peft.errors import MisfitError
from jno_lora_peft.layouts import Shape

# The indices of one module along the axes that run over modules.
Index = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Law:
    """The update of a weight: an einsum of its factors, with a letter for each axis.

    - `a`, `b`, `weight`: the axes of both factors and of the weight.

    `r` is the rank. `l` and `c` run over modules: the layers of a stack, and arrays that Torch has
    in several modules. `n` in `a` runs over heads, each with a product of its own; `x`, `y` and `z`
    are the axes of a kernel. An axis of `b` alone is summed.
    """

    a: str
    b: str
    weight: str

    @classmethod
    def parse(cls, einsum: str) -> "Law":
        """The law in `"ndr,nrh->ndh"`."""
        return cls(*re.split(",|->", einsum))

    def stacked(self, axis: int = 0) -> "Law":
        """The law of arrays in which this axis runs over layers."""
        all_axes = self.a, self.b, self.weight
        return Law(*(f"{axes[:axis]}l{axes[axis:]}" for axes in all_axes))

    def of_module(self) -> "Law":
        """The law of the factors of one module. The weight keeps its axes."""
        return Law(re.sub("[lc]", "", self.a), re.sub("[lc]", "", self.b), self.weight)

    def sizes(self, A: np.ndarray, B: np.ndarray) -> dict[str, int]:
        """The size of each axis. **Raises:** `MisfitError` if the factors do not fit together."""
        sizes: dict[str, int] = {}
        for axes, shape in ((self.a, A.shape), (self.b, B.shape)):
            fits = len(axes) == len(shape)
            for axis, size in zip(axes, shape, strict=False):
                fits &= sizes.setdefault(axis, size) == size > 0
            if not fits:
                raise MisfitError(
                    f"its factors {A.shape} and {B.shape} must have the axes {self.a} and "
                    f"{self.b}, with the same rank r > 0 and the same common axes"
                )
        return sizes

    # The weight in Torch: its rows are the heads and outputs, its columns the inputs.

    @property
    def heads(self) -> str:
        """The axis of the heads, if there is one."""
        return "n" if "n" in self.a else ""

    @property
    def outputs(self) -> str:
        """The axes of the outputs of one head."""
        return "".join(x for x in self.b if x in self.weight and x not in f"lc{self.a}")

    @property
    def inputs(self) -> str:
        """The axes of the inputs, and then of the kernel."""
        inputs = [axis for axis in self.a if axis not in f"nlc{self.b}"]
        return "".join(sorted(inputs, key="xyz".find))

    @property
    def in_torch(self) -> str:
        """The axes of Torch's weight, before they are flattened."""
        return self.heads + self.outputs + self.inputs

    def torch_shape(self, sizes: Mapping[str, int]) -> Shape:
        """The shape of the weight in Torch."""
        rows = math.prod(sizes[axis] for axis in self.heads + self.outputs)
        columns = math.prod(sizes[axis] for axis in self.inputs if axis not in "xyz")
        return rows, columns, *(sizes[axis] for axis in self.inputs if axis in "xyz")

    def torch_factors(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Torch's `(rank, inputs)` and `(outputs, rank)`, with the axes of a kernel if it has some.

        The factors are of one module. The products of several heads become one product of a higher
        rank, with zeros in `B`.
        """
        sizes = self.sizes(A, B)
        rows, columns, *kernel = self.torch_shape(sizes)
        A = A.transpose([self.a.index(axis) for axis in f"{self.heads}r{self.inputs}"])
        A = A.reshape(-1, columns, *kernel)
        # N: the heads of the rows; M: the heads of the ranks.
        head, apart = self.heads or "N", np.eye(sizes.get(self.heads, 1), dtype=np.float32)
        result = f"{head}{self.outputs}Mr"
        wide = B.astype(np.promote_types(B.dtype, np.float32))
        blocks = np.einsum(f"{self.b},{head}M->{result}", wide, apart)
        if all(sizes[axis] == 1 for axis in self.b if axis not in result):  # not a sum
            blocks = blocks.astype(B.dtype)
        return A, blocks.reshape(rows, len(A), *(1 for _ in kernel))


def slice_of(axes: str, index: Index) -> tuple[int | slice, ...]:
    """The place of one module in an array with these axes."""
    return tuple(index.get(axis, slice(None)) for axis in axes)


def distinct(laws: Iterable[Law], axes_of: Callable[[Law], str]) -> list[Law]:
    """The laws that make different arrays with the axes `axes_of(law)`.

    Laws may differ in letters alone, so an axis is known by its place in the factors.
    """
    by_places: dict[tuple[int, ...], Law] = {}
    for law in laws:
        places = tuple(map(f"{law.a},{law.b}".find, axes_of(law)))
        by_places.setdefault(places, law)
    return [*by_places.values()]


def law_from_shapes(A: Shape, B: Shape, *, inputs_first: bool) -> Law:
    """The law of factors that are `(inputs, rank)` and `(rank, outputs)`, or Torch's."""
    if not inputs_first:
        kernel, ones = "xyz"[: len(A) - 2], "uvw"[: len(B) - 2]
        return Law(f"ri{kernel}", f"or{ones}", f"oi{kernel}")
    inputs, outputs = string.ascii_uppercase[: len(A) - 1], "opqstuvw"[: len(B) - 1]
    if len(inputs) > 2:
        inputs = f"{'xyz'[: len(inputs) - 1]}i"
    return Law(f"{inputs}r", f"r{outputs}", inputs + outputs)

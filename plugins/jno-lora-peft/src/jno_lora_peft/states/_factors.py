"""The factors of a pair as PEFT's tensors, and back. All other code here has PEFT's tensors."""

import math

import numpy as np

from jno.lora import SelectionError

from .._errors import MisfitError
from ..model.layouts import Layout, Shape
from ..types import Tensors
from ._pairs import Pair


def check_alpha(value: float) -> None:
    """**Raises:** `SelectionError`."""
    if not math.isfinite(value) or value == 0:
        raise SelectionError(f"alpha must be a finite number, and not 0, got {value!r}")


def shape_of(pair: Pair, part: str) -> Shape:
    return tuple(pair.arrays[part].shape)


def find_stack_axis(pair: Pair, layout: Layout, count: int | None, given: int | None) -> int:
    """The axis of both factors that counts layers. **Raises:** `MisfitError`."""
    a, b = shape_of(pair, "A"), shape_of(pair, "B")
    fitting = [
        axis
        for axis in ((0, 1) if given is None else (given,))
        if axis < min(len(a), len(b))
        and a[axis] == b[axis] == (count or a[axis])
        and _fits(_without(a, axis), _without(b, axis), layout)
    ]
    if len(fitting) > 1:
        raise MisfitError(
            f"the factors {a} and {b} fit a stack along axis 0 and along axis 1. Say "
            "stack_axis=0 or stack_axis=1"
        )
    if not fitting:
        axes, many = "axis 0 or 1" if given is None else f"axis {given}", count or "many"
        raise MisfitError(
            f"the factors {a} and {b} do not fit {many} layers along {axes}, each with "
            f"{layout.inputs} inputs and {layout.outputs} outputs"
        )
    return fitting[0]


def check_shapes(pair: Pair, layout: Layout) -> None:
    """**Raises:** `MisfitError` unless the factors are of one such layer."""
    a, b = shape_of(pair, "A"), shape_of(pair, "B")
    if layout.groups > 1:
        raise MisfitError(f"the layer has {layout.groups} groups, which Qwix's update mixes")
    if not _fits(a, b, layout):
        wanted = (*layout.kernel, layout.inputs) if layout.kernel else (layout.inputs,)
        raise MisfitError(
            f"expected factors ({', '.join(map(str, wanted))}, rank) and (rank, {layout.outputs}), "
            f"or more axes with the same products, got {a} and {b}"
        )


def from_inputs_first(a: np.ndarray, b: np.ndarray, layout: Layout) -> Tensors:
    """PEFT's tensors of one layer, whose shapes fit."""
    rank = a.shape[-1]
    by_channel = a.reshape(*layout.kernel, layout.inputs, rank)
    first, second = np.moveaxis(by_channel, (-1, -2), (0, 1)), b.reshape(rank, -1).T
    return _named(first, second.reshape(*second.shape, *(1 for _ in layout.kernel)), layout)


def to_inputs_first(
    factors: tuple[np.ndarray, np.ndarray], layout: Layout, a: Shape, b: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` as arrays of these shapes, filled up with zeros.

    **Raises:** `MisfitError` if their rank is larger.
    """
    first, second = factors
    rank, missing = len(first), a[-1] - len(first)
    if missing < 0:
        room = f"the state has room for rank {a[-1]}. `to_lora` makes it smaller"
        raise MisfitError(f"its update has rank {rank}, and {room}")
    first, second = np.pad(first, ((0, missing), (0, 0))), np.pad(second, ((0, 0), (0, missing)))
    if layout.kernel:
        by_channel = first.reshape(a[-1], layout.inputs, *layout.kernel)
        return np.moveaxis(by_channel, (0, 1), (-1, -2)).reshape(a), second.T.reshape(b)
    return first.T.reshape(a), second.T.reshape(b)


def from_torch(arrays: Tensors, layout: Layout) -> Tensors:
    """PEFT's tensors. A linear layer and a convolution of size 1 may stand for each other."""
    first, second = arrays["A"], arrays["B"]
    if "mid" in arrays:
        # A kernel after a product, which is a kernel of the same size.
        product = np.tensordot(arrays["mid"], first.reshape(len(first), -1), axes=(1, 0))
        first = np.moveaxis(product, -1, 1)
    shapes = [shape for _, shape in layout.pair("lora", len(first)).values()]
    first, second = (
        factor.reshape(shape) if _same_matrix(factor.shape, shape) else factor
        for factor, shape in zip((first, second), shapes, strict=True)
    )
    return _named(first, second, layout)


def _named(first: np.ndarray, second: np.ndarray, layout: Layout) -> Tensors:
    names = (name for name, _ in layout.pair("lora", len(first)).values())
    return dict(zip(names, (first, second), strict=True))


def _same_matrix(shape: Shape, wanted: Shape) -> bool:
    """Whether both are one matrix, with or without the axes of a kernel of size 1."""
    return shape[:2] == wanted[:2] and {*shape[2:], *wanted[2:]} <= {1}


def _fits(a: Shape, b: Shape, layout: Layout) -> bool:
    if len(a) < 2 or a[-1:] != b[:1] or math.prod(b[1:]) != layout.outputs:
        return False
    if math.prod(layout.kernel) > 1:
        return a[:-1] == (*layout.kernel, layout.inputs)
    return math.prod(a[:-1]) == layout.inputs


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]

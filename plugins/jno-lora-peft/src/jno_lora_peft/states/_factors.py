"""The factors of a pair as PEFT's tensors, and back. All other code here has PEFT's tensors."""

import math

import numpy as np

from .._errors import MisfitError
from ..model.layouts import Layout, Shape
from ..types import Tensors
from ._pairs import Pair

A, B = "lora_A.weight", "lora_B.weight"


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
            f"the factors {a} and {b} fit a stack along their axis 0 and along their axis 1. Say "
            "which it is: stack_axis=0 or stack_axis=1"
        )
    if not fitting:
        layers = f"{count} layers" if count else "layers"
        raise MisfitError(
            f"the factors {a} and {b} do not fit a stack of {layers} along "
            f"{'axis 0 or 1' if given is None else f'axis {given}'}, each with {layout.inputs} "
            f"inputs and {layout.outputs} outputs"
        )
    return fitting[0]


def check_shapes(pair: Pair, layout: Layout) -> None:
    """**Raises:** `MisfitError` unless the factors are of one such layer."""
    a, b = shape_of(pair, "A"), shape_of(pair, "B")
    if layout.groups > 1:
        raise MisfitError(
            f"the layer has {layout.groups} groups, and the update of Qwix mixes the groups"
        )
    if not _fits(a, b, layout):
        wanted = (*layout.kernel, layout.inputs) if layout.kernel else (layout.inputs,)
        raise MisfitError(
            f"expected factors ({', '.join(map(str, wanted))}, rank) and (rank, {layout.outputs}), "
            f"or more axes with the same products, got {a} and {b}"
        )


def from_inputs_first(a: np.ndarray, b: np.ndarray, layout: Layout) -> Tensors:
    """PEFT's tensors of one layer, whose shapes fit."""
    rank = a.shape[-1]
    first = np.moveaxis(a, (-1, -2), (0, 1)) if layout.kernel else a.reshape(-1, rank).T
    second = b.reshape(rank, -1).T
    return {A: first, B: second.reshape(*second.shape, *(1 for _ in layout.kernel))}


def to_inputs_first(
    factors: tuple[np.ndarray, np.ndarray], layout: Layout, a: Shape, b: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` as arrays of these shapes, filled up with zeros.

    **Raises:** `MisfitError` if their rank is larger.
    """
    first, second = factors
    rank, missing = len(first), a[-1] - len(first)
    if missing < 0:
        raise MisfitError(
            f"its update has rank {rank}, and the state has room for rank {a[-1]}. `to_lora` makes "
            "the nearest LoRA of a lower rank"
        )
    first, second = np.pad(first, ((0, missing), (0, 0))), np.pad(second, ((0, 0), (0, missing)))
    if layout.kernel:
        by_channel = first.reshape(a[-1], layout.inputs, *layout.kernel)
        return np.moveaxis(by_channel, (0, 1), (-1, -2)).reshape(a), second.T.reshape(b)
    return first.T.reshape(a), second.T.reshape(b)


def from_torch(arrays: Tensors, layout: Layout) -> Tensors:
    """PEFT's tensors. A linear layer and a convolution of size 1 may stand for each other."""
    first, second = arrays["A"], arrays["B"]
    if first.ndim < 2:
        raise MisfitError(f"expected a factor (rank, {layout.inputs}), got {first.shape}")
    if "mid" in arrays:
        if arrays["mid"].shape[1:2] != first.shape[:1]:
            raise MisfitError(f"lora_mid {arrays['mid'].shape} does not fit {first.shape}")
        # A kernel after a product, which is a kernel of the same size.
        product = np.tensordot(arrays["mid"], first.reshape(len(first), -1), axes=(1, 0))
        first = np.moveaxis(product, -1, 1)
    shapes = [shape for _, shape in layout.pair("lora", len(first)).values()]
    return {
        name: factor.reshape(shape) if _same_without_ones(factor.shape, shape) else factor
        for name, factor, shape in zip((A, B), (first, second), shapes, strict=True)
    }


def _same_without_ones(shape: Shape, wanted: Shape) -> bool:
    def stripped(sizes: Shape) -> Shape:
        return sizes[:2] + tuple(size for size in sizes[2:] if size != 1)

    return len(shape) > 1 and stripped(shape) == stripped(wanted)


def _fits(a: Shape, b: Shape, layout: Layout) -> bool:
    if len(a) < 2 or a[-1:] != b[:1] or math.prod(b[1:]) != layout.outputs:
        return False
    if layout.kernel:
        return a[:-1] == (*layout.kernel, layout.inputs)
    return math.prod(a[:-1]) == layout.inputs


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]

"""The kinds of layer that PEFT has tensors for, and those tensors as matrices."""

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import numpy as np

from jno.lora import ConvLike, LinearLike

Kind = Literal["linear", "conv", "embedding"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layer as PEFT sees it.

    - `outputs`, `inputs`: its features or channels; for an embedding its dimensions and its rows.
    - `groups`, `kernel`: of a convolution.
    - `odd`: what PEFT leaves out when it runs the update of a convolution beside the layer, so that
        it computes something else than the merged layer; empty for most.
    """

    kind: Kind
    outputs: int
    inputs: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    odd: str = ""

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of the layer's weight as a matrix."""
        return self.outputs, self.inputs // self.groups * math.prod(self.kernel)

    @property
    def factors(self) -> tuple[str, str]:
        """PEFT's names for `A` and `B`."""
        if self.kind == "embedding":
            return "lora_embedding_A", "lora_embedding_B"
        return "lora_A.weight", "lora_B.weight"

    @property
    def magnitude_shape(self) -> tuple[int, ...]:
        """The shape of DoRA's magnitude."""
        return (1, self.outputs, *(1 for _ in self.kernel)) if self.kernel else (self.outputs,)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of IA3's scale."""
        return self.magnitude_shape if self.kernel else (self.outputs, 1)

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of PEFT's `A`."""
        return (rank, self.inputs, *self.kernel)

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of PEFT's `B`."""
        return (self.outputs, rank // self.groups, *(1 for _ in self.kernel))

    def to_matrices(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """`(r, in)` and `(out, r)`, whose product is the update that PEFT's `A` and `B` make.

        `None` if no matrices do: PEFT's `A` sees the inputs of all groups, the layer's kernel only
        those of an output's own group.
        """
        if self.groups == 1:
            return A.reshape(len(A), -1), B.reshape(len(B), -1)
        groups, each = self.groups, len(A) // self.groups
        # Axes: group of the outputs, component, group of the inputs, input.
        by_group = A.reshape(groups, each, groups, -1)
        own = np.stack([by_group[group, :, group] for group in range(groups)])
        if np.count_nonzero(by_group) != np.count_nonzero(own):
            return None
        if all(np.array_equal(block, own[0]) for block in own):
            return own[0], B.reshape(len(B), each)
        spread = np.zeros((groups, self.outputs // groups, groups, each), B.dtype)
        for group, block in enumerate(B.reshape(groups, -1, each)):
            spread[group, :, group] = block
        return own.reshape(groups * each, -1), spread.reshape(self.outputs, -1)

    def from_matrices(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """PEFT's `A` and `B` for `(r, in)` and `(out, r)`; with groups, of `r` for each."""
        if self.groups > 1:
            # The one `A` that serves all groups, once for each, on the inputs of that group.
            by_group = np.zeros((self.groups, len(A), self.groups, A.shape[1]), A.dtype)
            for group in range(self.groups):
                by_group[group, :, group] = A
            A = by_group.reshape(self.groups * len(A), -1)
        return A.reshape(self.down_shape(len(A))), B.reshape(self.up_shape(len(A)))


def layout_of(layer: Any) -> Layout | None:
    """The layout of PEFT's update of `layer`, one of a stack. `None` if it has no update for it."""
    weight: Any = getattr(layer, "weight", None)
    if getattr(weight, "ndim", 0) < 2:
        return None
    for find in (_embedding, _conv, _linear):
        layout = find(layer)
        if layout is not None:
            shape = _weight_shape(layout)
            return layout if weight.shape[-len(shape) :] == shape else None
    return None


def is_transposed(layer: Any) -> bool:
    """Whether `layer` is a transposed convolution, whose kernel Torch lays out otherwise."""
    return isinstance(layer, eqx.nn.ConvTranspose) or hasattr(layer, "output_padding")


def _embedding(layer: Any) -> Layout | None:
    rows, size = getattr(layer, "num_embeddings", None), getattr(layer, "embedding_size", None)
    if not isinstance(rows, int) or not isinstance(size, int):
        return None
    return Layout("embedding", outputs=size, inputs=rows)


def _conv(layer: Any) -> Layout | None:
    kernel = getattr(layer, "kernel_size", None)
    if not isinstance(layer, ConvLike) or not isinstance(kernel, tuple):
        return None
    if is_transposed(layer):
        return None
    dilation = getattr(layer, "dilation", 1)
    mode = str(getattr(layer, "padding_mode", "ZEROS"))
    odd = [f"padding_mode={mode!r}"] if mode.upper() != "ZEROS" else []
    odd += [f"dilation={dilation}"] if set(np.ravel(dilation)) != {1} else []
    return Layout(
        "conv",
        outputs=layer.out_channels,
        inputs=layer.in_channels,
        groups=getattr(layer, "groups", 1),
        kernel=kernel,
        odd=" and ".join(odd),
    )


def _linear(layer: Any) -> Layout | None:
    if not isinstance(layer, eqx.nn.Linear | LinearLike):
        return None
    outputs, inputs = (
        1 if size == "scalar" else size for size in (layer.out_features, layer.in_features)
    )
    return Layout("linear", outputs=outputs, inputs=inputs)


def _weight_shape(layout: Layout) -> tuple[int, ...]:
    if layout.kind == "embedding":
        return layout.inputs, layout.outputs
    return layout.outputs, layout.inputs // layout.groups, *layout.kernel

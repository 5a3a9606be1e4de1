"""The kinds of layer that PEFT adapts, and PEFT's tensors as matrices."""

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import numpy as np

from jno.lora import ConvLike, LinearLike
from jno_lora_zoo import plain_layer

from .errors import MisfitError

Shape = tuple[int, ...]

# The reasons why a layer does not match PEFT's.
NO_LAYER = "it is a {}; PEFT's tensors fit linear layers, convolutions and embeddings"
TRANSPOSED = (
    "Torch lays out the kernel of a transposed convolution otherwise, with the inputs first and "
    "each axis reversed. Convert it by hand"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layer in PEFT's terms.

    - `outputs`, `inputs`: the numbers of features or channels; for an embedding, its dimensions and
        rows.
    - `groups`, `kernel`: of a convolution.
    - `odd`: options of a convolution that PEFT ignores when it runs the update beside the layer, so
        that its output differs from the merged layer's; usually empty.
    """

    kind: Literal["linear", "conv", "embedding"]
    outputs: int
    inputs: int
    groups: int = 1
    kernel: Shape = ()
    odd: str = ""

    @property
    def weight_shape(self) -> Shape:
        if self.kind == "embedding":
            return self.inputs, self.outputs
        return self.outputs, self.inputs // self.groups, *self.kernel

    @property
    def matrix(self) -> tuple[int, int]:
        return self.outputs, self.inputs // self.groups * math.prod(self.kernel)

    @property
    def row(self) -> Shape:
        return (1, self.outputs, *(1 for _ in self.kernel)) if self.kernel else (self.outputs,)

    def pair(self, prefix: str, rank: int) -> dict[str, tuple[str, Shape]]:
        """PEFT's names and shapes for two factors, by their names in the zoo."""
        infix = "embedding_" if self.kind == "embedding" else ""
        end = ".weight" if prefix == "lora" and not infix else ""
        A = (rank, self.inputs, *self.kernel)
        B = (self.outputs, rank // self.groups, *(1 for _ in self.kernel))
        return {"lora_A": (f"{prefix}_{infix}A{end}", A), "lora_B": (f"{prefix}_{infix}B{end}", B)}

    def to_matrices(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(r, in)` and `(out, r)`, whose product is the update that PEFT's `A` and `B` make.

        **Raises:** `MisfitError` if no matrices do, because PEFT's `A` reads the inputs of all
        groups, but the layer's kernel only those in the group of an output.
        """
        if self.groups == 1:
            return A.reshape(len(A), -1), B.reshape(len(B), -1)
        groups, each = self.groups, len(A) // self.groups
        # Axes: output group, component, input group, input.
        by_group = A.reshape(groups, each, groups, -1)
        diagonal = np.stack([by_group[group, :, group] for group in range(groups)])
        if np.count_nonzero(by_group) != np.count_nonzero(diagonal):
            raise MisfitError(f"its update mixes the {groups} groups, and no kernel does")
        if all(np.array_equal(block, diagonal[0]) for block in diagonal):
            return diagonal[0], B.reshape(len(B), each)
        spread = np.zeros((groups, self.outputs // groups, groups, each), B.dtype)
        for group, block in enumerate(B.reshape(groups, -1, each)):
            spread[group, :, group] = block
        return diagonal.reshape(groups * each, -1), spread.reshape(self.outputs, -1)

    def for_all_groups(self, A: np.ndarray) -> np.ndarray:
        """`A` repeated for each group, on the inputs of the group."""
        by_group = np.zeros((self.groups, len(A), self.groups, A.shape[1]), A.dtype)
        for group in range(self.groups):
            by_group[group, :, group] = A
        return by_group.reshape(self.groups * len(A), -1)

    def check_kind(self, kinds: tuple[str, ...] | None, groups: bool = False) -> None:
        """**Raises:** `MisfitError` unless the layer is of one of these kinds, if any are given."""
        if kinds is None:
            return
        kind = f"conv{len(self.kernel)}d" if self.kind == "conv" else self.kind
        if kind not in kinds:
            raise MisfitError(f"PEFT has adapters of this type for {', '.join(kinds)}, not {kind}")
        if self.groups > 1 and not groups:
            raise MisfitError("PEFT has adapters of this type for convolutions without groups")
        self.check_update()

    def check_update(self, *, dora: bool = False, dilated: bool = False) -> None:
        """**Raises:** `MisfitError` if PEFT's (`dilated`) update is not an update of the weight."""
        if self.odd and not (dilated and "padding_mode" not in self.odd):
            raise MisfitError(f"the layer has {self.odd}, which PEFT's update of it leaves out")
        if dora and self.groups > 1:
            raise MisfitError("PEFT's DoRA takes no norm of the rows of a kernel with groups")


def layout_of(layer: object) -> Layout | None:
    """The layout of a layer, or of one layer of a stack; `None` if PEFT does not adapt it."""
    layer = plain_layer(layer)
    shape: Shape = getattr(getattr(layer, "weight", None), "shape", ())
    layout = _layout(layer) if len(shape) > 1 else None
    if layout is None or shape[-len(layout.weight_shape) :] != layout.weight_shape:
        return None
    return layout


def _layout(layer: Any) -> Layout | None:
    """The layout by the layer's fields, which may not fit its weight."""
    if hasattr(type(layer), "linear_features"):  # of another plugin: its weight as one matrix
        return Layout("linear", *layer.linear_features())
    rows, size = getattr(layer, "num_embeddings", None), getattr(layer, "embedding_size", None)
    if isinstance(rows, int) and isinstance(size, int):
        return Layout("embedding", size, rows)
    kernel = getattr(layer, "kernel_size", None)
    if isinstance(layer, ConvLike) and isinstance(kernel, tuple) and not is_transposed(layer):
        dilation = getattr(layer, "dilation", 1)
        mode = str(getattr(layer, "padding_mode", "ZEROS"))
        odd = [f"padding_mode={mode!r}"] if mode.upper() != "ZEROS" else []
        odd += [f"dilation={dilation}"] if set(np.ravel(dilation)) != {1} else []
        outputs, inputs = layer.out_channels, layer.in_channels
        groups = getattr(layer, "groups", 1)
        return Layout("conv", outputs, inputs, groups, kernel, " and ".join(odd))
    if isinstance(layer, eqx.nn.Linear | LinearLike):
        sizes = layer.out_features, layer.in_features
        outputs, inputs = (1 if size == "scalar" else size for size in sizes)
        return Layout("linear", outputs, inputs)
    return None


def stack_of(layer: object) -> Shape:
    """The stack axes of a layer, as far as the shape of a single layer is known."""
    layer, layout = plain_layer(layer), layout_of(layer)
    shape: Shape = getattr(getattr(layer, "weight", None), "shape", ())
    of_layer = getattr(layer, "shape", None) if layout is None else layout.weight_shape
    if not isinstance(of_layer, tuple) or shape[len(shape) - len(of_layer) :] != of_layer:
        return ()
    return shape[: len(shape) - len(of_layer)]


def is_transposed(layer: object) -> bool:
    """Whether `layer` is a transposed convolution, for which Torch's kernel layout differs."""
    return isinstance(layer, eqx.nn.ConvTranspose) or hasattr(layer, "output_padding")

"""One module of a file, and the adapter here that computes the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._layouts import Layout, Shape
from ._updates import Factors, MisfitError, Parts, alpha_for, check, factors


@dataclasses.dataclass(frozen=True)
class Converted:
    """One adapter as an adapter here: its variant, and its arrays.

    - `variant`: `None` if nothing but the bias changes.
    - `bias`: `"shift"`, to add to the layer's bias, or nothing.
    - `shared`: arrays that it shares with the other adapters of the file, by the names here.
    """

    variant: str | None
    rank: int
    alpha: float
    state: Mapping[str, np.ndarray]
    bias: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Module:
    """One adapted module of a file, with everything that the law of its type needs.

    - `name`, `values`: its name, and the settings of the file; `rank` and `alpha` are its own.
    - `parts`: its tensors; `shared`: those that no module has alone. All are float32 at least.
    - `layer`, `index`, `layout`: its layer here, its index in a stack, and the layer for PEFT.
    """

    name: str
    values: Mapping[str, Any]
    rank: int
    alpha: float
    parts: Parts
    shared: Parts
    layer: Any
    index: Shape
    layout: Layout

    def check(self, shapes: Mapping[str, Shape], ignored: str = "") -> None:
        """**Raises:** `MisfitError` unless these are all its tensors, and have these shapes."""
        check(self.parts, shapes, ignored)

    @property
    def W(self) -> np.ndarray:
        """The layer's weight as `(out, in)`, in float64."""
        weight = np.asarray(self.layer.weight[self.index], np.float64)
        weight = weight.T if self.layout.kind == "embedding" else weight
        return weight.reshape(self.layout.matrix)

    @property
    def b(self) -> np.ndarray:
        """The layer's bias, in float64; zeros if it has none."""
        bias = getattr(self.layer, "bias", None)
        if bias is None:
            return np.zeros(self.layout.outputs)
        return np.asarray(bias[self.index], np.float64).reshape(-1)

    def low_rank(
        self, product: Factors, scale: float = 1.0, variant: str = "lora", **bias: np.ndarray
    ) -> Converted:
        """`s B A` as an adapter of scale `s`, with the alpha of the file if that gives it."""
        A, B = product
        outputs, inputs = self.layout.matrix
        if A.shape[1:] != (inputs,) or B.shape != (outputs, len(A)):
            raise MisfitError(
                f"its update is ({len(B)}, {A.shape[-1]}) as a matrix, the layer's weight is "
                f"({outputs}, {inputs})"
            )
        if len(A) > min(outputs, inputs):
            # No adapter here has a larger rank than its layer's matrix.
            whole = B.astype(np.float64) @ A.astype(np.float64)
            A, B = factors(whole.astype(np.result_type(A, B)))
        elif len(A) == 0:  # AdaLoRA has taken all of it away
            A, B = np.zeros((1, inputs), A.dtype), np.zeros((outputs, 1), B.dtype)
        alpha = alpha_for(variant, len(A), scale, self.alpha)
        return Converted(variant, len(A), alpha, {"lora_A": A, "lora_B": B}, bias)

    def update(self, U: np.ndarray, **bias: np.ndarray) -> Converted:
        """`W + U` as LoRA, for an update of any rank."""
        product = factors(U.astype(np.float32))
        found = self.low_rank(product)
        small = {name: change.astype(np.float32) for name, change in bias.items()}
        return dataclasses.replace(found, bias=small)

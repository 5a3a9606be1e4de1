"""The methods that types are held as, their matrices, and the layers that PEFT's types have."""

import math
from typing import Any

import numpy as np

from jno_lora_zoo import METHODS as _METHODS

from .._errors import MisfitError
from ..model.layouts import Layout

Factors = tuple[np.ndarray, np.ndarray]

METHODS: dict[str, Any] = {str(method.variant): method for method in _METHODS}
# The adapters of jno-lora-routed that PEFT has too, by variant.
ROUTED = {
    "activated-lora": "ActivatedLoRA",
    "lily": "Lily",
    "peanut": "PEANuTLinear",
    "poly": "Poly",
}


def alpha_for(variant: str, rank: int, scale: float, given: float) -> float:
    """The alpha that makes this scale of an update: the given alpha if it does, up to rounding."""
    # The scale of the adapters of jno-lora-routed is LoRA's.
    alpha = scale / METHODS["lora" if variant in ROUTED else variant].scale_for(rank, 1.0)
    return float(given) if math.isclose(alpha, given) else alpha


def factors(kernel: np.ndarray) -> Factors:
    """Factors `A` and `B` of a matrix, or of a kernel as a matrix, that may have any rank."""
    matrix = kernel.reshape(len(kernel), -1)
    outputs, inputs = matrix.shape
    eye = np.eye(min(outputs, inputs), dtype=matrix.dtype)
    return (matrix, eye) if outputs <= inputs else (eye, matrix)


def tucker_kernel(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel from its core and the factors of its outputs and inputs (a Tucker decomposition)."""
    return np.einsum("ijkl,jr,ip->prkl", core, b, a)


def check_layer(layout: Layout, kinds: tuple[str, ...] | None, groups: bool = False) -> None:
    """**Raises:** `MisfitError` unless the layer is of one of these kinds, or `kinds` is `None`."""
    if kinds is None:
        return
    kind = f"conv{len(layout.kernel)}d" if layout.kind == "conv" else layout.kind
    if kind not in kinds:
        names = ", ".join(kinds)
        raise MisfitError(f"PEFT has adapters of this type for {names}, and this is {kind}")
    if layout.groups > 1 and not groups:
        raise MisfitError("PEFT has adapters of this type for convolutions without groups")
    refuse_layer(layout)


def refuse_layer(layout: Layout, *, dora: bool = False, dilated: bool = False) -> None:
    """**Raises:** `MisfitError` if PEFT's (`dilated`) update of the layer is not of its weight."""
    if layout.odd and not (dilated and "padding_mode" not in layout.odd):
        raise MisfitError(f"the layer has {layout.odd}, which PEFT's update of it leaves out")
    if dora and layout.groups > 1:
        raise MisfitError("PEFT's DoRA takes no norm of the rows of a kernel with groups")

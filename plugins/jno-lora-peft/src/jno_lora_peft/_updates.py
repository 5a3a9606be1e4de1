"""Reasons why an adapter cannot be converted, and updates as two factors."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ._layouts import METHODS, Layout, Shape

Parts = Mapping[str, np.ndarray]
Factors = tuple[np.ndarray, np.ndarray]


class MisfitError(ValueError):
    """The adapter of one module cannot be converted. `args` has a line for each reason."""


def factors(kernel: np.ndarray) -> Factors:
    """Factors `A` and `B` of a matrix, or of a kernel as one, that may have any rank."""
    matrix = kernel.reshape(len(kernel), -1)
    outputs, inputs = matrix.shape
    eye = np.eye(min(outputs, inputs), dtype=matrix.dtype)
    return (matrix, eye) if outputs <= inputs else (eye, matrix)


def refuse_layer(layout: Layout, *, dora: bool = False, dilated: bool = False) -> None:
    """**Raises:** `MisfitError` if PEFT's update of the layer is not an update of its weight.

    - `dilated`: whether PEFT runs the update as dilated as the layer.
    """
    if layout.odd and not (dilated and "padding_mode" not in layout.odd):
        raise MisfitError(
            f"the layer has {layout.odd}, which PEFT leaves out when it runs the update beside it, "
            "so that no kernel does the same"
        )
    if dora and layout.groups > 1:
        raise MisfitError("PEFT's DoRA takes no norm of the rows of a kernel with groups")


def alpha_for(variant: str, rank: int, scale: float, given: float) -> float:
    """The alpha that makes this scale of an update: the given one, but for rounding, if it does."""
    alpha = scale / METHODS[variant].scale_for(rank, 1.0)
    return float(given) if math.isclose(alpha, given) else alpha


def widened(array: np.ndarray) -> np.ndarray:
    """The array in float32 at least."""
    return array.astype(np.promote_types(array.dtype, np.float32))


def floating(parts: Parts) -> Parts:
    """The tensors in float32 at least, but for indices and sizes, which are whole numbers.

    **Raises:** `MisfitError` for tensors of another kind.
    """
    wide: dict[str, np.ndarray] = {}
    for name, tensor in parts.items():
        is_whole = "indices" in name or "_s_size." in name
        kind, words = (jnp.integer, "whole") if is_whole else (jnp.floating, "floating")
        if not jnp.issubdtype(tensor.dtype, kind):
            raise MisfitError(f"{name}: expected {words} numbers, got {tensor.dtype}")
        wide[name] = tensor if is_whole else widened(tensor)
    return wide


def check(parts: Parts, shapes: Mapping[str, Shape], ignored: str = "") -> None:
    """**Raises:** `MisfitError` unless these are all the parts, and have these shapes."""
    lines = [f"{name}: missing" for name in shapes if name not in parts]
    lines += [
        f"{name}: not part of the adapter that adapter_config.json describes for this layer"
        for name in parts
        if name not in shapes and name != ignored
    ]
    lines += [
        f"{name}: expected shape {shape}, got {parts[name].shape}"
        for name, shape in shapes.items()
        if name in parts and parts[name].shape != shape
    ]
    if lines:
        raise MisfitError(*lines)

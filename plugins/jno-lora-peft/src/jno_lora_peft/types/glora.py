"""GLoRA: `W + W A + B` and `b + b D + E + W C`, and each of the five has one of four forms."""

from dataclasses import replace

import numpy as np

from ..model.layouts import Shape
from ._type import Converted, MisfitError, Module, R, Type


class GLORA(Type):
    """LoRA of the layer's rank, and the bias changed."""

    tensors = r"glora_[A-E]\.(?:Xd|Xu|X|zeros)"
    layers = None
    rank = R
    settings = "config_A_B config_C config_D_E"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        shapes = {"A": (outputs, inputs), "B": (outputs, inputs), "C": (inputs, 1)}
        shapes |= {"D": (outputs,), "E": (outputs,)}
        A, B, C, D, E = (_support(m, letter, shape) for letter, shape in shapes.items())
        shift = m.b * D + E + (m.W @ C)[:, 0]
        adapter = m.update((m.W * A + B).astype(np.float32))
        return replace(adapter, bias_shift=shift.astype(np.float32)) if shift.any() else adapter


def _support(m: Module, letter: str, shape: Shape) -> np.ndarray:
    """One of the five: a product of two factors, one vector, one number, or nothing."""
    prefix = f"glora_{letter}."
    x = {name.removeprefix(prefix): t for name, t in m.tensors.items() if name.startswith(prefix)}
    try:
        support = x["Xd"] @ x["Xu"] if x.keys() == {"Xd", "Xu"} else x.get("X", 0.0)
        return np.broadcast_to(np.asarray(support, np.float64), shape)
    except ValueError as err:
        raise MisfitError(f"glora_{letter}: it does not make an array {shape}: {err}") from err

"""Types that scale features by vectors, or that replace arrays of the model."""

import math
import re

import numpy as np

from ..errors import MisfitError
from ..layouts import Layout, Shape
from .type import Adapter, Converted, Module, Modules, Settings, Type, Written


# IA3, on outputs (including the bias) or inputs: a factor per output, input or channel.
class IA3(Type):
    """IA³ on outputs (`IA3Out` if the layer has a bias) or on inputs (`IA3In`)."""

    tensors = "ia3_l"
    layers = None
    methods = ("ia3", "ia3-out", "ia3-in")

    def read(self, m: Module) -> Converted:
        """PEFT scales the inputs of `feedforward_modules`, and the outputs of all other layers."""
        on_inputs = _scales_inputs(m.settings, m.name)
        scale = m.take({"ia3_l": _shape(m.layout, on_inputs)})[0].reshape(-1)
        if not on_inputs:
            has_bias = getattr(m.layer, "bias", None) is not None
            return Converted("ia3-out" if has_bias else "ia3", 1, 1.0, {"scale": scale})
        by_group = scale.reshape(m.layout.groups, -1)
        if not (by_group == by_group[0]).all():
            raise MisfitError("it scales the inputs of each group differently, unlike a kernel")
        scale = np.repeat(by_group[0], math.prod(m.layout.kernel))
        return Converted("ia3-in", 1, 1.0, {"scale": scale})

    def write(self, adapter: Adapter) -> Written:
        layout, scale = adapter.layout, adapter.state["scale"]
        on_inputs = adapter.variant == "ia3-in"
        shape = _shape(layout, on_inputs)
        if adapter.variant == "ia3" and adapter.has_bias:
            raise MisfitError("PEFT's IA3 also scales the layer's bias: use IA3Out")
        if on_inputs:
            by_channel = scale.reshape(layout.inputs // layout.groups, -1)
            if not (by_channel == by_channel[:, :1]).all():
                raise MisfitError("PEFT's IA3 has one factor for all of a channel in a kernel")
            scale = np.tile(by_channel[:, 0], layout.groups)
        return adapter.written({"ia3_l": scale.reshape(shape)}, {}, rank=1)

    def common(self, modules: Modules) -> dict[str, object]:
        names = [name for name, x in modules.items() if x.adapter.variant == "ia3-in"]
        return {"feedforward_modules": "|".join(map(re.escape, names)) or []}


def _scales_inputs(settings: Settings, module: str) -> bool:
    names = settings.get("feedforward_modules") or ()
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module.endswith(name) for name in names)


def _shape(layout: Layout, on_inputs: bool) -> Shape:
    if layout.kind == "embedding" or len(layout.kernel) == 1:
        layers = "embeddings" if layout.kind == "embedding" else "convolutions of one axis"
        raise MisfitError(f"PEFT's IA3 has no equivalent for {layers}")
    count = layout.inputs if on_inputs else layout.outputs
    if layout.kind == "conv":
        return (1, count, *(1 for _ in layout.kernel))
    return (1, count) if on_inputs else (count, 1)


# BEFT: a vector added to the layer's bias.
class BEFT(Type):
    """replaces the layer's bias."""

    tensors = "beft_bias"
    layers = None

    def read(self, m: Module) -> Converted:
        (bias,) = m.take({"beft_bias": (1, m.layout.outputs)})
        return Converted(None, 1, 1.0, {}, bias.reshape(-1))


# LN tuning: whole modules, such as norms.
class LN_TUNING(Type):
    """replaces the arrays."""


# Trainable tokens: rows of an embedding.
class TRAINABLE_TOKENS(Type):
    """replaces rows of the embedding."""

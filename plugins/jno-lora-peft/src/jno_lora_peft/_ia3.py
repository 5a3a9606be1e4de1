"""IA3, on outputs (the bias among them) or inputs: one factor for each, or for each channel."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._layouts import Layout, Shape
from ._module import Converted, Module
from ._same import Adapter, File
from ._updates import MisfitError


def ia3(m: Module) -> Converted:
    """The inputs of `feedforward_modules` are scaled, the outputs of all other layers."""
    on_inputs = scales_inputs(m.values, m.name)
    m.check({"ia3_l": _shape(m.layout, on_inputs)})
    scale = m.parts["ia3_l"].reshape(-1)
    if not on_inputs:
        has_bias = getattr(m.layer, "bias", None) is not None
        return Converted("ia3-out" if has_bias else "ia3", 1, 1.0, {"scale": scale})
    by_group = scale.reshape(m.layout.groups, -1)
    if not (by_group == by_group[0]).all():
        raise MisfitError(
            "it scales the inputs of each group otherwise, and a grouped kernel sees them as the "
            "same inputs"
        )
    scale = np.repeat(by_group[0], math.prod(m.layout.kernel))
    return Converted("ia3-in", 1, 1.0, {"scale": scale})


def to_ia3(adapter: Adapter) -> File:
    """An adapter of the variants `"ia3"`, `"ia3-out"` and `"ia3-in"` for PEFT."""
    layout, scale = adapter.layout, adapter.state["scale"]
    on_inputs = adapter.variant == "ia3-in"
    shape = _shape(layout, on_inputs)
    if adapter.variant == "ia3" and adapter.has_bias:
        raise MisfitError(
            "PEFT's IA3 also scales the bias of a layer, which IA3 here leaves alone: use IA3Out"
        )
    if on_inputs:
        by_channel = scale.reshape(layout.inputs // layout.groups, -1)
        if not (by_channel == by_channel[:, :1]).all():
            raise MisfitError("PEFT's IA3 has one factor for all of a channel's places in a kernel")
        scale = np.tile(by_channel[:, 0], layout.groups)
    return File(1, {"ia3_l": scale.reshape(shape)}, {})


def feedforward(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that names the modules whose inputs are scaled."""
    names = [re.escape(name) for name, one in modules.items() if one.variant == "ia3-in"]
    return {"feedforward_modules": "|".join(names) if names else []}


def scales_inputs(values: Mapping[str, Any], module: str) -> bool:
    """Whether the inputs of the module of that name are scaled, not its outputs."""
    names = values.get("feedforward_modules") or ()
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module.endswith(name) for name in names)


def _shape(layout: Layout, on_inputs: bool) -> Shape:
    if layout.kind == "embedding" or len(layout.kernel) == 1:
        what = "embeddings" if layout.kind == "embedding" else "convolutions of one axis"
        raise MisfitError(f"PEFT's IA3 has no equivalent for {what}")
    count = layout.inputs if on_inputs else layout.outputs
    if layout.kind == "conv":
        return (1, count, *(1 for _ in layout.kernel))
    return (1, count) if on_inputs else (count, 1)

"""PEANuT: an update that a network computes from the weight, as `PEANuT` of jno-lora-routed."""

import numpy as np

from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written

# In the order of jno-lora-routed, whose adapters hold the place.
_ACTIVATIONS = (
    *("relu", "relu2", "relu6", "leaky_relu", "gelu", "gelu_new", "gelu_pytorch_tanh"),
    *("quick_gelu", "silu", "swish", "mish", "sigmoid", "tanh", "linear"),
)
_SIDES = ("encoders", "decoders")


class PEANUT(Type):
    """PEANuT."""

    tensors = r"peanut_[AB]\.weight|peanut_(?:encoders|decoders)\.\d+\.weight"
    rank = Setting("r", 32)
    alpha = Setting("scaling", 1.0)
    settings = "depth act_fn"

    def read(self, m: Module) -> Converted:
        outputs, r = m.layout.outputs, m.rank
        depth, name = m.settings.get("depth") or 0, m.settings.get("act_fn") or "relu"
        if name not in _ACTIVATIONS:
            raise MisfitError(f"act_fn is {name!r}, and not one of {', '.join(_ACTIVATIONS)}")
        names = {"peanut_A.weight": (r, outputs), "peanut_B.weight": (outputs, r)}
        names |= {f"peanut_{side}.{n}.weight": (r, r) for side in _SIDES for n in range(depth)}
        A, B, *layers = m.take(names)
        state = {"A": A, "B": B, "activation": np.zeros(_ACTIVATIONS.index(name) + 1, np.int8)}
        for side, part in zip(_SIDES, (layers[:depth], layers[depth:]), strict=True):
            state[side] = np.stack(part) if part else np.zeros((0, r, r), A.dtype)
        return Converted("peanut", r, m.alpha * r, state)

    def write(self, adapter: Adapter) -> Written:
        state = adapter.state
        tensors = {f"peanut_{name}.weight": state[name] for name in "AB"}
        for side in _SIDES:
            tensors |= {f"peanut_{side}.{n}.weight": x for n, x in enumerate(state[side])}
        name = _ACTIVATIONS[len(state["activation"]) - 1]
        settings = {"depth": len(state["encoders"]), "act_fn": name}
        return adapter.written(tensors, settings, alpha=adapter.alpha / adapter.rank)

"""PEANuT: `W + s B f(W)`, where `f` is a small network of the layer's weight, `(r, in)`."""

import numpy as np

from ._activations import ACTIVATIONS
from ._type import Converted, MisfitError, Module, Setting, Type


def _read(m: Module) -> Converted:
    """The network runs on the columns of the weight. Its values are the second factor of a LoRA."""
    outputs, _ = m.layout.matrix
    depth, name = m.settings.get("depth") or 0, m.settings.get("act_fn") or "relu"
    if name not in ACTIVATIONS:
        raise MisfitError(
            f"act_fn is {name!r}. The functions that are known here are {', '.join(ACTIVATIONS)}"
        )
    if not isinstance(depth, int) or depth < 0:
        raise MisfitError(f"depth is {depth!r}, not a whole number")
    names = {"peanut_A.weight": (m.rank, outputs), "peanut_B.weight": (outputs, m.rank)}
    for side in ("encoders", "decoders"):
        names |= {f"peanut_{side}.{n}.weight": (m.rank, m.rank) for n in range(depth)}
    A, B, *layers = m.take(names)
    activate, skipped = ACTIVATIONS[name], []
    hidden = activate(A @ m.W)
    for encoder in layers[:depth]:
        skipped.append(hidden)
        hidden = activate(encoder @ hidden)
    for decoder in layers[depth:]:
        hidden = activate(decoder @ hidden) + skipped.pop()
    return m.low_rank((hidden.astype(B.dtype), B), m.alpha)


PEANUT = Type(
    "PEANUT",
    held="LoRA, `A` the values of its network on the layer's weight",
    tensors=r"peanut_[AB]\.weight|peanut_(?:encoders|decoders)\.\d+\.weight",
    reader=_read,
    rank=Setting("r", 32),
    alpha=Setting("scaling", 1.0),
    settings="depth act_fn",
)

"""Adapters that depend on the input: a router weighs low-rank products for each token.

`HydraLoRA`, `MoELoRA`, `Lily` and `Poly` can be selected by name or variant
(`net.lora(wrapper="hydra-lora", rank=4, options={"experts": 3})`), and so can `ActivatedLoRA`,
which acts from an invocation on. `arrow` and `XLoRA` route between existing adapters. All of them
use a `Router`, which other packages can subclass.
"""

from ._activated import ActivatedLoRA, Invocation, with_invocation
from ._arrow import ArrowLoRA, arrow
from ._calls import average_over, with_task
from ._peanut import PEANuT, PEANuTLinear
from ._routed import Routed
from ._xlora import GivenLoRA, XLoRA
from .adapters import HydraLoRA, Lily, MoELoRA, Poly
from .routers import Given, Prototypes, Router, Softmax, Tasks, TopK

__all__ = [
    "ActivatedLoRA",
    "ArrowLoRA",
    "Given",
    "GivenLoRA",
    "HydraLoRA",
    "Invocation",
    "Lily",
    "MoELoRA",
    "PEANuT",
    "PEANuTLinear",
    "Poly",
    "Prototypes",
    "Routed",
    "Router",
    "Softmax",
    "Tasks",
    "TopK",
    "XLoRA",
    "arrow",
    "average_over",
    "with_invocation",
    "with_task",
]

"""Adapters for arrays outside of layers (Flax, Haiku, raw weights), and for weights that are read.

`declare` marks the axes of an array as inputs and outputs (`infer` finds them), so that every
method of the zoo can adapt the array. `declare_raw` does the same for arrays behind functions, such
as masks. `through` computes a function of such arrays, or of layers whose weights are read, at the
cost of the adapters.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from jno_lora_zoo import made_when_named

from . import adapters
from ._box import ArrayLayer, DeclaredArray
from ._declare import declare, plain
from ._infer import ArrayAxes, InferredAxes, infer
from ._raw import declare_raw
from ._through import report_uses, through
from ._tracing import Use, UseReport

if TYPE_CHECKING:
    from .adapters import *

__getattr__, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
__all__ = [
    "ArrayAxes",
    "ArrayLayer",
    "DeclaredArray",
    "InferredAxes",
    "Use",
    "UseReport",
    "declare",
    "declare_raw",
    "infer",
    "plain",
    "report_uses",
    "through",
]
__all__ += adapters.__all__

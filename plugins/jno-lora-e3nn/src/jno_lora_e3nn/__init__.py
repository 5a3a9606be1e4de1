"""Adapters for the equivariant layers of e3nn-jax, which keep the equivariance.

Every method of the zoo adapts `e3nn_jax.equinox.Linear`, one matrix for each path of irreps, and
the radial networks of nequix. They are found by name (`net.lora(wrapper="LoRAE3nn")`), by variant
(`wrapper="dora"`) and by `wrapper="auto"`; and, once this package is imported, by
`net.lora(rank=4)`, because nothing else adapts these layers. `MMEA` gives e3nn's
layers gains that depend on their input (`wrapper="mmea"`).
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from jno_lora_zoo import made_when_named

from . import adapters
from .layers import E3nnLayer, E3nnPerSpeciesLayer
from .mmea import MMEA
from .radial import RadialLayer

if TYPE_CHECKING:
    from .adapters import *

__getattr__, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
__all__ = ["MMEA", "E3nnLayer", "E3nnPerSpeciesLayer", "RadialLayer"]
__all__ += adapters.__all__

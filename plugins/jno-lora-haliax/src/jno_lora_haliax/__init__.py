"""Adapters for Haliax's layers, and so for the models of Levanter and Marin.

Every method of the zoo adapts `haliax.nn.Linear`, `haliax.nn.Embedding` and `haliax.nn.Conv`. They
are found by name (`net.lora(wrapper="LoRAHaliaxLinear")`), by variant (`wrapper="dora"`) and by
`wrapper="auto"`; and, once this package is imported, linear layers and convolutions by
`net.lora(rank=4)`. PEFT's files cannot hold adapters of `Conv`: `target=` leaves these layers out.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from jno_lora_zoo import made_when_named

from . import adapters
from .layers import HaliaxConvLayer, HaliaxEmbeddingLayer, HaliaxLinearLayer, NamedLayer

if TYPE_CHECKING:
    from .adapters import *

__getattr__, __dir__ = made_when_named(globals(), adapters.ADAPTERS)
__all__ = ["HaliaxConvLayer", "HaliaxEmbeddingLayer", "HaliaxLinearLayer", "NamedLayer"]
__all__ += adapters.__all__

"""Adapters for `GRUCell` and `LSTMCell`: the methods of the zoo on one more kind of layer.

They are found by name (`net.lora(wrapper="LoRARecurrent")`), by variant (`"lora-recurrent"`), or
passed as classes. A further method takes one line:
`class MyMethodRecurrent(MyMethod, RecurrentLayer): ...`.
"""

# ruff: noqa: F403
from jno_lora_zoo import RecurrentLayer

from . import adapters
from .adapters import *

__all__ = ["RecurrentLayer"]
__all__ += adapters.__all__

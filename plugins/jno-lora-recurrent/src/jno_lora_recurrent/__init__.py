"""Adapters for `GRUCell` and `LSTMCell`: the methods of the zoo on one more kind of layer.

They are found by name (`net.lora(wrapper="LoRARecurrent")`) or passed as classes. A further method
takes one line: `class MyMethodRecurrent(MyMethod, RecurrentLayer): ...`.
"""

from .adapters import (
    DoRARecurrent,
    IA3Recurrent,
    LoKrRecurrent,
    LoRAFARecurrent,
    LoRARecurrent,
    LoRAXSRecurrent,
    MiLoRARecurrent,
    OFTRecurrent,
    PiSSARecurrent,
    VeRARecurrent,
    rsLoRARecurrent,
)
from .layer import RecurrentLayer

__all__ = [
    "DoRARecurrent",
    "IA3Recurrent",
    "LoKrRecurrent",
    "LoRAFARecurrent",
    "LoRARecurrent",
    "LoRAXSRecurrent",
    "MiLoRARecurrent",
    "OFTRecurrent",
    "PiSSARecurrent",
    "RecurrentLayer",
    "VeRARecurrent",
    "rsLoRARecurrent",
]

"""The methods of the zoo, one paper each."""

from .dora import DoRA
from .ia3 import IA3
from .lokr import LoKr
from .lora import LoRA, LoRAFA, rsLoRA
from .lora_xs import LoRAXS
from .oft import OFT
from .pissa import MiLoRA, PiSSA
from .vera import VeRA

__all__ = [
    "IA3",
    "OFT",
    "DoRA",
    "LoKr",
    "LoRA",
    "LoRAFA",
    "LoRAXS",
    "MiLoRA",
    "PiSSA",
    "VeRA",
    "rsLoRA",
]

# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from .._method import Method
from .dora import DoRA as DoRA
from .hira import HiRA as HiRA
from .ia3 import IA3 as IA3
from .ia3 import IA3In as IA3In
from .ia3 import IA3Out as IA3Out
from .loha import LoHa as LoHa
from .lokr import LoKr as LoKr
from .lora import LoRA as LoRA
from .lora import LoRAFA as LoRAFA
from .lora import rsLoRA as rsLoRA
from .lora_xs import LoRAXS as LoRAXS
from .miss import MiSS as MiSS
from .oft import OFT as OFT
from .pissa import MiLoRA as MiLoRA
from .pissa import PiSSA as PiSSA
from .vera import VeRA as VeRA

__all__ = [
    "METHODS",
    "LoRA",
    "LoHa",
    "IA3",
    "IA3In",
    "IA3Out",
    "OFT",
    "LoRAFA",
    "LoKr",
    "VeRA",
    "rsLoRA",
    "DoRA",
    "PiSSA",
    "LoRAXS",
    "MiLoRA",
    "MiSS",
    "HiRA",
]
METHODS: tuple[type[Method], ...]

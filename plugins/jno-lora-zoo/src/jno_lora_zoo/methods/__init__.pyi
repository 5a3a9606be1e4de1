# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from .._method import Method
from .adalora import AdaLoRA as AdaLoRA
from .delora import DeLoRA as DeLoRA
from .dora import DoRA as DoRA
from .fourierft import FourierFT as FourierFT
from .ia3 import IA3 as IA3
from .lokr import LoKr as LoKr
from .lora import LoRA as LoRA
from .lora import LoRAFA as LoRAFA
from .lora import rsLoRA as rsLoRA
from .lora_xs import LoRAXS as LoRAXS
from .oft import OFT as OFT
from .pissa import MiLoRA as MiLoRA
from .pissa import PiSSA as PiSSA
from .shira import SHiRA as SHiRA
from .supertuning import SuperTuning as SuperTuning
from .tinylora import TinyLoRA as TinyLoRA
from .vera import VeRA as VeRA
from .waveft import WaveFT as WaveFT

__all__ = [
    "METHODS",
    "LoRA",
    "IA3",
    "AdaLoRA",
    "OFT",
    "LoRAFA",
    "LoKr",
    "VeRA",
    "rsLoRA",
    "DoRA",
    "PiSSA",
    "FourierFT",
    "LoRAXS",
    "MiLoRA",
    "SHiRA",
    "DeLoRA",
    "WaveFT",
    "TinyLoRA",
    "SuperTuning",
]
METHODS: tuple[type[Method], ...]

# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from .._method import Method
from .adalora import AdaLoRA as AdaLoRA
from .boft import BOFT as BOFT
from .c3a import C3A as C3A
from .corda import CorDA as CorDA
from .deft import DEFT as DEFT
from .delora import DeLoRA as DeLoRA
from .dora import DoRA as DoRA
from .eva import EVA as EVA
from .fourierft import FourierFT as FourierFT
from .gralora import GraLoRA as GraLoRA
from .hira import HiRA as HiRA
from .hra import HRA as HRA
from .ia3 import IA3 as IA3
from .ia3 import IA3In as IA3In
from .ia3 import IA3Out as IA3Out
from .loha import LoHa as LoHa
from .lokr import LoKr as LoKr
from .lora import LoRA as LoRA
from .lora import LoRAFA as LoRAFA
from .lora import rsLoRA as rsLoRA
from .lora_ga import LoRAGA as LoRAGA
from .lora_one import LoRAOne as LoRAOne
from .lora_xs import LoRAXS as LoRAXS
from .miss import MiSS as MiSS
from .oft import OFT as OFT
from .oft_in import OFTIn as OFTIn
from .pissa import MiLoRA as MiLoRA
from .pissa import OLoRA as OLoRA
from .pissa import PiSSA as PiSSA
from .psoft import PSOFT as PSOFT
from .randlora import RandLoRA as RandLoRA
from .road import RoAd as RoAd
from .shira import SHiRA as SHiRA
from .supertuning import SuperTuning as SuperTuning
from .tied_lora import TiedLoRA as TiedLoRA
from .tinylora import TinyLoRA as TinyLoRA
from .vb_lora import VBLoRA as VBLoRA
from .vera import VeRA as VeRA
from .vera_shared import VeRAShared as VeRAShared
from .waveft import WaveFT as WaveFT

__all__ = [
    "METHODS",
    "LoRA",
    "LoHa",
    "IA3",
    "IA3In",
    "IA3Out",
    "AdaLoRA",
    "OFT",
    "LoRAFA",
    "LoKr",
    "VeRA",
    "VeRAShared",
    "BOFT",
    "TiedLoRA",
    "rsLoRA",
    "DoRA",
    "PiSSA",
    "FourierFT",
    "VBLoRA",
    "HRA",
    "LoRAXS",
    "OLoRA",
    "CorDA",
    "MiLoRA",
    "SHiRA",
    "LoRAGA",
    "C3A",
    "RoAd",
    "MiSS",
    "EVA",
    "RandLoRA",
    "LoRAOne",
    "DeLoRA",
    "PSOFT",
    "WaveFT",
    "GraLoRA",
    "OFTIn",
    "DEFT",
    "TinyLoRA",
    "SuperTuning",
    "HiRA",
]
METHODS: tuple[type[Method], ...]

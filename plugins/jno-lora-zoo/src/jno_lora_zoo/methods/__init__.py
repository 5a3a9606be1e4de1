"""The methods of the zoo, one per paper. A new method adds one line here.

`make update` writes the stubs and lists that name its adapters.
"""

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
from .ia3 import IA3 as IA3, IA3In as IA3In, IA3Out as IA3Out
from .loha import LoHa as LoHa
from .lokr import LoKr as LoKr
from .lora import LoRA as LoRA, LoRAFA as LoRAFA, rsLoRA as rsLoRA
from .lora_ga import LoRAGA as LoRAGA
from .lora_null import LoRANull as LoRANull
from .lora_one import LoRAOne as LoRAOne
from .lora_xs import LoRAXS as LoRAXS
from .miss import MiSS as MiSS
from .oft import OFT as OFT
from .oft_in import OFTIn as OFTIn
from .pissa import MiLoRA as MiLoRA, OLoRA as OLoRA, PiSSA as PiSSA
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

_methods = [item for item in vars().values() if isinstance(item, type) and item is not Method]

# Oldest paper first. The numbers of papers that are not on arXiv come last.
METHODS: tuple[type[Method], ...] = tuple(sorted(_methods, key=lambda m: str(m.about.paper)))
__all__ = ["METHODS", *(method.__name__ for method in METHODS)]  # pyright: ignore[reportUnsupportedDunderAll]

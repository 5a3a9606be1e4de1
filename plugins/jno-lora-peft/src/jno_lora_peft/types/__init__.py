"""PEFT's types that are held here, one file each. A new type is one more line here.

`python -m peft_cases.listing --write`, in the folder of the tests, adds it to docs/peft.md.
"""

from ._conversion import (
    METHODS as METHODS,
    ROUTED as ROUTED,
    Adapter as Adapter,
    Converted as Converted,
    Module as Module,
    Tensors as Tensors,
    Written as Written,
    alpha_for as alpha_for,
    floating as floating,
    widened as widened,
)
from ._starts import refused_start as refused_start
from ._type import Modules as Modules, Setting as Setting, Type as Type
from .adalora import ADALORA as ADALORA
from .beft import BEFT as BEFT
from .boft import BOFT as BOFT
from .c3a import C3A as C3A
from .deft import DEFT as DEFT
from .delora import DELORA as DELORA
from .fourierft import FOURIERFT as FOURIERFT
from .frod import FROD as FROD
from .glora import GLORA as GLORA
from .gralora import GRALORA as GRALORA
from .hira import HIRA as HIRA
from .hra import HRA as HRA
from .ia3 import IA3 as IA3
from .lily import LILY as LILY
from .ln_tuning import LN_TUNING as LN_TUNING
from .loha import LOHA as LOHA
from .lokr import LOKR as LOKR
from .lora import LORA as LORA
from .miss import MISS as MISS
from .oft import OFT as OFT
from .osf import OSF as OSF
from .peanut import PEANUT as PEANUT
from .poly import POLY as POLY
from .pvera import PVERA as PVERA
from .randlora import RANDLORA as RANDLORA
from .road import ROAD as ROAD
from .shira import SHIRA as SHIRA
from .supertuning import SUPERTUNING as SUPERTUNING
from .tinylora import TINYLORA as TINYLORA
from .trainable_tokens import TRAINABLE_TOKENS as TRAINABLE_TOKENS
from .unilora import UNILORA as UNILORA
from .vblora import VBLORA as VBLORA
from .vera import VERA as VERA
from .waveft import WAVEFT as WAVEFT

# By `peft_type`.
TYPES = {value.name: value for value in list(vars().values()) if isinstance(value, Type)}

# By the variants of the methods that are written as the type.
TYPE_OF = {variant: type_ for type_ in TYPES.values() for variant in type_.variants}

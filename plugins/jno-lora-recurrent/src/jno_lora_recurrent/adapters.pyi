# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layer import RecurrentLayer
from jno_lora_zoo import DoRA
from jno_lora_zoo import HiRA
from jno_lora_zoo import IA3
from jno_lora_zoo import IA3In
from jno_lora_zoo import IA3Out
from jno_lora_zoo import LoHa
from jno_lora_zoo import LoKr
from jno_lora_zoo import LoRA
from jno_lora_zoo import LoRAFA
from jno_lora_zoo import LoRAXS
from jno_lora_zoo import MiLoRA
from jno_lora_zoo import MiSS
from jno_lora_zoo import OFT
from jno_lora_zoo import PiSSA
from jno_lora_zoo import VeRA
from jno_lora_zoo import rsLoRA

__all__ = [
    "LoRARecurrent",
    "LoHaRecurrent",
    "IA3Recurrent",
    "IA3InRecurrent",
    "IA3OutRecurrent",
    "OFTRecurrent",
    "LoRAFARecurrent",
    "LoKrRecurrent",
    "VeRARecurrent",
    "rsLoRARecurrent",
    "DoRARecurrent",
    "PiSSARecurrent",
    "LoRAXSRecurrent",
    "MiLoRARecurrent",
    "MiSSRecurrent",
    "HiRARecurrent",
]

class LoRARecurrent(LoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class LoHaRecurrent(LoHa, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class IA3Recurrent(IA3, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InRecurrent(IA3In, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutRecurrent(IA3Out, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class OFTRecurrent(OFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFARecurrent(LoRAFA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class LoKrRecurrent(LoKr, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class VeRARecurrent(VeRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class rsLoRARecurrent(rsLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class DoRARecurrent(DoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class PiSSARecurrent(PiSSA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        svd: Any = ...,
    ) -> None: ...

class LoRAXSRecurrent(LoRAXS, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        svd: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class MiLoRARecurrent(MiLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        svd: Any = ...,
    ) -> None: ...

class MiSSRecurrent(MiSS, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        mini: Any = ...,
        bat: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class HiRARecurrent(HiRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

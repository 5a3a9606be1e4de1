# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layer import RecurrentLayer
from jno_lora_zoo import AdaLoRA
from jno_lora_zoo import DeLoRA
from jno_lora_zoo import DoRA
from jno_lora_zoo import FourierFT
from jno_lora_zoo import IA3
from jno_lora_zoo import LoKr
from jno_lora_zoo import LoRA
from jno_lora_zoo import LoRAFA
from jno_lora_zoo import LoRAXS
from jno_lora_zoo import MiLoRA
from jno_lora_zoo import OFT
from jno_lora_zoo import PiSSA
from jno_lora_zoo import SHiRA
from jno_lora_zoo import SuperTuning
from jno_lora_zoo import TinyLoRA
from jno_lora_zoo import VeRA
from jno_lora_zoo import WaveFT
from jno_lora_zoo import rsLoRA

__all__ = [
    "LoRARecurrent",
    "IA3Recurrent",
    "AdaLoRARecurrent",
    "OFTRecurrent",
    "LoRAFARecurrent",
    "LoKrRecurrent",
    "VeRARecurrent",
    "rsLoRARecurrent",
    "DoRARecurrent",
    "PiSSARecurrent",
    "FourierFTRecurrent",
    "LoRAXSRecurrent",
    "MiLoRARecurrent",
    "SHiRARecurrent",
    "DeLoRARecurrent",
    "WaveFTRecurrent",
    "TinyLoRARecurrent",
    "SuperTuningRecurrent",
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

class AdaLoRARecurrent(AdaLoRA, RecurrentLayer):
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

class FourierFTRecurrent(FourierFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        n_frequency: Any = ...,
        multiplier: Any = ...,
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

class SHiRARecurrent(SHiRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class DeLoRARecurrent(DeLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class WaveFTRecurrent(WaveFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        n_frequency: Any = ...,
        wavelet: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class TinyLoRARecurrent(TinyLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        u: Any = ...,
        svd: Any = ...,
    ) -> None: ...

class SuperTuningRecurrent(SuperTuning, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        sparsity: Any = ...,
        count: Any = ...,
        largest: Any = ...,
    ) -> None: ...

# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from jno_lora_zoo import AdaLoRA
from jno_lora_zoo import BOFT
from jno_lora_zoo import C3A
from jno_lora_zoo import CorDA
from jno_lora_zoo import DEFT
from jno_lora_zoo import DeLoRA
from jno_lora_zoo import DoRA
from jno_lora_zoo import EVA
from jno_lora_zoo import FourierFT
from jno_lora_zoo import GraLoRA
from jno_lora_zoo import HRA
from jno_lora_zoo import HiRA
from jno_lora_zoo import IA3
from jno_lora_zoo import IA3In
from jno_lora_zoo import IA3Out
from jno_lora_zoo import LoHa
from jno_lora_zoo import LoKr
from jno_lora_zoo import LoRA
from jno_lora_zoo import LoRAFA
from jno_lora_zoo import LoRAGA
from jno_lora_zoo import LoRAOne
from jno_lora_zoo import LoRAXS
from jno_lora_zoo import MiLoRA
from jno_lora_zoo import MiSS
from jno_lora_zoo import OFT
from jno_lora_zoo import OFTIn
from jno_lora_zoo import OLoRA
from jno_lora_zoo import PSOFT
from jno_lora_zoo import PiSSA
from jno_lora_zoo import RandLoRA
from jno_lora_zoo import RecurrentLayer
from jno_lora_zoo import RoAd
from jno_lora_zoo import SHiRA
from jno_lora_zoo import SuperTuning
from jno_lora_zoo import TiedLoRA
from jno_lora_zoo import TinyLoRA
from jno_lora_zoo import VBLoRA
from jno_lora_zoo import VeRA
from jno_lora_zoo import VeRAShared
from jno_lora_zoo import WaveFT
from jno_lora_zoo import rsLoRA

__all__ = [
    "LoRARecurrent",
    "LoHaRecurrent",
    "IA3Recurrent",
    "IA3InRecurrent",
    "IA3OutRecurrent",
    "AdaLoRARecurrent",
    "OFTRecurrent",
    "LoRAFARecurrent",
    "LoKrRecurrent",
    "VeRARecurrent",
    "VeRASharedRecurrent",
    "BOFTRecurrent",
    "TiedLoRARecurrent",
    "rsLoRARecurrent",
    "DoRARecurrent",
    "PiSSARecurrent",
    "FourierFTRecurrent",
    "VBLoRARecurrent",
    "HRARecurrent",
    "LoRAXSRecurrent",
    "OLoRARecurrent",
    "CorDARecurrent",
    "MiLoRARecurrent",
    "SHiRARecurrent",
    "LoRAGARecurrent",
    "C3ARecurrent",
    "RoAdRecurrent",
    "MiSSRecurrent",
    "EVARecurrent",
    "RandLoRARecurrent",
    "LoRAOneRecurrent",
    "DeLoRARecurrent",
    "PSOFTRecurrent",
    "WaveFTRecurrent",
    "GraLoRARecurrent",
    "OFTInRecurrent",
    "DEFTRecurrent",
    "TinyLoRARecurrent",
    "SuperTuningRecurrent",
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
        dropout: Any = ...,
        bias: Any = ...,
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
        dropout: Any = ...,
        bias: Any = ...,
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

class VeRASharedRecurrent(VeRAShared, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        d_initial: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class BOFTRecurrent(BOFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        factors: Any = ...,
    ) -> None: ...

class TiedLoRARecurrent(TiedLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        zero: Any = ...,
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
        dropout: Any = ...,
        bias: Any = ...,
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

class VBLoRARecurrent(VBLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        vectors: Any = ...,
        vector_length: Any = ...,
        top_k: Any = ...,
        initial: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class HRARecurrent(HRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        gram_schmidt: Any = ...,
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

class OLoRARecurrent(OLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDARecurrent(CorDA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        statistics: Any = ...,
        mode: Any = ...,
        svd: Any = ...,
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

class LoRAGARecurrent(LoRAGA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        statistics: Any = ...,
        gamma: Any = ...,
        svd: Any = ...,
    ) -> None: ...

class C3ARecurrent(C3A, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        init: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class RoAdRecurrent(RoAd, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        per_pair: Any = ...,
        group_size: Any = ...,
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

class EVARecurrent(EVA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        statistics: Any = ...,
        whiten: Any = ...,
        svd: Any = ...,
        multiplier: Any = ...,
        dropout: Any = ...,
        bias: Any = ...,
    ) -> None: ...

class RandLoRARecurrent(RandLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        bases: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class LoRAOneRecurrent(LoRAOne, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        statistics: Any = ...,
        step: Any = ...,
        gamma: Any = ...,
        svd: Any = ...,
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

class PSOFTRecurrent(PSOFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        scale_inputs: Any = ...,
        scale_outputs: Any = ...,
        terms: Any = ...,
        svd: Any = ...,
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

class GraLoRARecurrent(GraLoRA, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        k: Any = ...,
        multiplier: Any = ...,
    ) -> None: ...

class OFTInRecurrent(OFTIn, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        terms: Any = ...,
        block_share: Any = ...,
    ) -> None: ...

class DEFTRecurrent(DEFT, RecurrentLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
        inject: Any = ...,
        orthogonal: Any = ...,
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

# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from ._boxes._array_layer import ArrayLayer
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
    "LoRAArray",
    "LoHaArray",
    "IA3Array",
    "IA3InArray",
    "IA3OutArray",
    "AdaLoRAArray",
    "OFTArray",
    "LoRAFAArray",
    "LoKrArray",
    "VeRAArray",
    "VeRASharedArray",
    "BOFTArray",
    "TiedLoRAArray",
    "rsLoRAArray",
    "DoRAArray",
    "PiSSAArray",
    "FourierFTArray",
    "VBLoRAArray",
    "HRAArray",
    "LoRAXSArray",
    "OLoRAArray",
    "CorDAArray",
    "MiLoRAArray",
    "SHiRAArray",
    "LoRAGAArray",
    "C3AArray",
    "RoAdArray",
    "MiSSArray",
    "EVAArray",
    "RandLoRAArray",
    "LoRAOneArray",
    "DeLoRAArray",
    "PSOFTArray",
    "WaveFTArray",
    "GraLoRAArray",
    "OFTInArray",
    "DEFTArray",
    "TinyLoRAArray",
    "SuperTuningArray",
    "HiRAArray",
]

class LoRAArray(LoRA, ArrayLayer):
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

class LoHaArray(LoHa, ArrayLayer):
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

class IA3Array(IA3, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InArray(IA3In, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutArray(IA3Out, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAArray(AdaLoRA, ArrayLayer):
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

class OFTArray(OFT, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAArray(LoRAFA, ArrayLayer):
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

class LoKrArray(LoKr, ArrayLayer):
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

class VeRAArray(VeRA, ArrayLayer):
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

class VeRASharedArray(VeRAShared, ArrayLayer):
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

class BOFTArray(BOFT, ArrayLayer):
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

class TiedLoRAArray(TiedLoRA, ArrayLayer):
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

class rsLoRAArray(rsLoRA, ArrayLayer):
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

class DoRAArray(DoRA, ArrayLayer):
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

class PiSSAArray(PiSSA, ArrayLayer):
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

class FourierFTArray(FourierFT, ArrayLayer):
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

class VBLoRAArray(VBLoRA, ArrayLayer):
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

class HRAArray(HRA, ArrayLayer):
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

class LoRAXSArray(LoRAXS, ArrayLayer):
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

class OLoRAArray(OLoRA, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAArray(CorDA, ArrayLayer):
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

class MiLoRAArray(MiLoRA, ArrayLayer):
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

class SHiRAArray(SHiRA, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAArray(LoRAGA, ArrayLayer):
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

class C3AArray(C3A, ArrayLayer):
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

class RoAdArray(RoAd, ArrayLayer):
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

class MiSSArray(MiSS, ArrayLayer):
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

class EVAArray(EVA, ArrayLayer):
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

class RandLoRAArray(RandLoRA, ArrayLayer):
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

class LoRAOneArray(LoRAOne, ArrayLayer):
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

class DeLoRAArray(DeLoRA, ArrayLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTArray(PSOFT, ArrayLayer):
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

class WaveFTArray(WaveFT, ArrayLayer):
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

class GraLoRAArray(GraLoRA, ArrayLayer):
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

class OFTInArray(OFTIn, ArrayLayer):
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

class DEFTArray(DEFT, ArrayLayer):
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

class TinyLoRAArray(TinyLoRA, ArrayLayer):
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

class SuperTuningArray(SuperTuning, ArrayLayer):
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

class HiRAArray(HiRA, ArrayLayer):
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

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
from jno_lora_zoo import EmbeddingLayer
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
    "LoRAEmbedding",
    "LoHaEmbedding",
    "IA3Embedding",
    "IA3InEmbedding",
    "IA3OutEmbedding",
    "AdaLoRAEmbedding",
    "OFTEmbedding",
    "LoRAFAEmbedding",
    "LoKrEmbedding",
    "VeRAEmbedding",
    "VeRASharedEmbedding",
    "BOFTEmbedding",
    "TiedLoRAEmbedding",
    "rsLoRAEmbedding",
    "DoRAEmbedding",
    "PiSSAEmbedding",
    "FourierFTEmbedding",
    "VBLoRAEmbedding",
    "HRAEmbedding",
    "LoRAXSEmbedding",
    "OLoRAEmbedding",
    "CorDAEmbedding",
    "MiLoRAEmbedding",
    "SHiRAEmbedding",
    "LoRAGAEmbedding",
    "C3AEmbedding",
    "RoAdEmbedding",
    "MiSSEmbedding",
    "EVAEmbedding",
    "RandLoRAEmbedding",
    "LoRAOneEmbedding",
    "DeLoRAEmbedding",
    "PSOFTEmbedding",
    "WaveFTEmbedding",
    "GraLoRAEmbedding",
    "OFTInEmbedding",
    "DEFTEmbedding",
    "TinyLoRAEmbedding",
    "SuperTuningEmbedding",
    "HiRAEmbedding",
]

class LoRAEmbedding(LoRA, EmbeddingLayer):
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

class LoHaEmbedding(LoHa, EmbeddingLayer):
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

class IA3Embedding(IA3, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InEmbedding(IA3In, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutEmbedding(IA3Out, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAEmbedding(AdaLoRA, EmbeddingLayer):
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

class OFTEmbedding(OFT, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAEmbedding(LoRAFA, EmbeddingLayer):
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

class LoKrEmbedding(LoKr, EmbeddingLayer):
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

class VeRAEmbedding(VeRA, EmbeddingLayer):
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

class VeRASharedEmbedding(VeRAShared, EmbeddingLayer):
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

class BOFTEmbedding(BOFT, EmbeddingLayer):
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

class TiedLoRAEmbedding(TiedLoRA, EmbeddingLayer):
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

class rsLoRAEmbedding(rsLoRA, EmbeddingLayer):
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

class DoRAEmbedding(DoRA, EmbeddingLayer):
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

class PiSSAEmbedding(PiSSA, EmbeddingLayer):
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

class FourierFTEmbedding(FourierFT, EmbeddingLayer):
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

class VBLoRAEmbedding(VBLoRA, EmbeddingLayer):
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

class HRAEmbedding(HRA, EmbeddingLayer):
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

class LoRAXSEmbedding(LoRAXS, EmbeddingLayer):
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

class OLoRAEmbedding(OLoRA, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAEmbedding(CorDA, EmbeddingLayer):
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

class MiLoRAEmbedding(MiLoRA, EmbeddingLayer):
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

class SHiRAEmbedding(SHiRA, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAEmbedding(LoRAGA, EmbeddingLayer):
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

class C3AEmbedding(C3A, EmbeddingLayer):
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

class RoAdEmbedding(RoAd, EmbeddingLayer):
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

class MiSSEmbedding(MiSS, EmbeddingLayer):
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

class EVAEmbedding(EVA, EmbeddingLayer):
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

class RandLoRAEmbedding(RandLoRA, EmbeddingLayer):
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

class LoRAOneEmbedding(LoRAOne, EmbeddingLayer):
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

class DeLoRAEmbedding(DeLoRA, EmbeddingLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTEmbedding(PSOFT, EmbeddingLayer):
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

class WaveFTEmbedding(WaveFT, EmbeddingLayer):
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

class GraLoRAEmbedding(GraLoRA, EmbeddingLayer):
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

class OFTInEmbedding(OFTIn, EmbeddingLayer):
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

class DEFTEmbedding(DEFT, EmbeddingLayer):
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

class TinyLoRAEmbedding(TinyLoRA, EmbeddingLayer):
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

class SuperTuningEmbedding(SuperTuning, EmbeddingLayer):
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

class HiRAEmbedding(HiRA, EmbeddingLayer):
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

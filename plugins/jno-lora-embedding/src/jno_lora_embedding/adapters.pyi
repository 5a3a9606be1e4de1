# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layer import EmbeddingLayer
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
    "LoRAEmbedding",
    "IA3Embedding",
    "AdaLoRAEmbedding",
    "OFTEmbedding",
    "LoRAFAEmbedding",
    "LoKrEmbedding",
    "VeRAEmbedding",
    "rsLoRAEmbedding",
    "DoRAEmbedding",
    "PiSSAEmbedding",
    "FourierFTEmbedding",
    "LoRAXSEmbedding",
    "MiLoRAEmbedding",
    "SHiRAEmbedding",
    "DeLoRAEmbedding",
    "WaveFTEmbedding",
    "TinyLoRAEmbedding",
    "SuperTuningEmbedding",
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

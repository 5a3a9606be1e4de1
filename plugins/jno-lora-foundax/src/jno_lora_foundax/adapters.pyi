# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layers import ChannelLastConvLayer
from .layers import ChannelLastConvTransposeLayer
from .layers import SubsampledLinearLayer
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
    "LoRAChannelLastConv",
    "LoHaChannelLastConv",
    "IA3ChannelLastConv",
    "IA3InChannelLastConv",
    "IA3OutChannelLastConv",
    "AdaLoRAChannelLastConv",
    "OFTChannelLastConv",
    "LoRAFAChannelLastConv",
    "LoKrChannelLastConv",
    "VeRAChannelLastConv",
    "VeRASharedChannelLastConv",
    "BOFTChannelLastConv",
    "TiedLoRAChannelLastConv",
    "rsLoRAChannelLastConv",
    "DoRAChannelLastConv",
    "PiSSAChannelLastConv",
    "FourierFTChannelLastConv",
    "VBLoRAChannelLastConv",
    "HRAChannelLastConv",
    "LoRAXSChannelLastConv",
    "OLoRAChannelLastConv",
    "CorDAChannelLastConv",
    "MiLoRAChannelLastConv",
    "SHiRAChannelLastConv",
    "LoRAGAChannelLastConv",
    "C3AChannelLastConv",
    "RoAdChannelLastConv",
    "MiSSChannelLastConv",
    "EVAChannelLastConv",
    "RandLoRAChannelLastConv",
    "LoRAOneChannelLastConv",
    "DeLoRAChannelLastConv",
    "PSOFTChannelLastConv",
    "WaveFTChannelLastConv",
    "GraLoRAChannelLastConv",
    "OFTInChannelLastConv",
    "DEFTChannelLastConv",
    "TinyLoRAChannelLastConv",
    "SuperTuningChannelLastConv",
    "HiRAChannelLastConv",
    "LoRAChannelLastConvTranspose",
    "LoHaChannelLastConvTranspose",
    "IA3ChannelLastConvTranspose",
    "IA3InChannelLastConvTranspose",
    "IA3OutChannelLastConvTranspose",
    "AdaLoRAChannelLastConvTranspose",
    "OFTChannelLastConvTranspose",
    "LoRAFAChannelLastConvTranspose",
    "LoKrChannelLastConvTranspose",
    "VeRAChannelLastConvTranspose",
    "VeRASharedChannelLastConvTranspose",
    "BOFTChannelLastConvTranspose",
    "TiedLoRAChannelLastConvTranspose",
    "rsLoRAChannelLastConvTranspose",
    "DoRAChannelLastConvTranspose",
    "PiSSAChannelLastConvTranspose",
    "FourierFTChannelLastConvTranspose",
    "VBLoRAChannelLastConvTranspose",
    "HRAChannelLastConvTranspose",
    "LoRAXSChannelLastConvTranspose",
    "OLoRAChannelLastConvTranspose",
    "CorDAChannelLastConvTranspose",
    "MiLoRAChannelLastConvTranspose",
    "SHiRAChannelLastConvTranspose",
    "LoRAGAChannelLastConvTranspose",
    "C3AChannelLastConvTranspose",
    "RoAdChannelLastConvTranspose",
    "MiSSChannelLastConvTranspose",
    "EVAChannelLastConvTranspose",
    "RandLoRAChannelLastConvTranspose",
    "LoRAOneChannelLastConvTranspose",
    "DeLoRAChannelLastConvTranspose",
    "PSOFTChannelLastConvTranspose",
    "WaveFTChannelLastConvTranspose",
    "GraLoRAChannelLastConvTranspose",
    "OFTInChannelLastConvTranspose",
    "DEFTChannelLastConvTranspose",
    "TinyLoRAChannelLastConvTranspose",
    "SuperTuningChannelLastConvTranspose",
    "HiRAChannelLastConvTranspose",
    "LoRASubsampledLinear",
    "LoHaSubsampledLinear",
    "IA3SubsampledLinear",
    "IA3InSubsampledLinear",
    "IA3OutSubsampledLinear",
    "AdaLoRASubsampledLinear",
    "OFTSubsampledLinear",
    "LoRAFASubsampledLinear",
    "LoKrSubsampledLinear",
    "VeRASubsampledLinear",
    "VeRASharedSubsampledLinear",
    "BOFTSubsampledLinear",
    "TiedLoRASubsampledLinear",
    "rsLoRASubsampledLinear",
    "DoRASubsampledLinear",
    "PiSSASubsampledLinear",
    "FourierFTSubsampledLinear",
    "VBLoRASubsampledLinear",
    "HRASubsampledLinear",
    "LoRAXSSubsampledLinear",
    "OLoRASubsampledLinear",
    "CorDASubsampledLinear",
    "MiLoRASubsampledLinear",
    "SHiRASubsampledLinear",
    "LoRAGASubsampledLinear",
    "C3ASubsampledLinear",
    "RoAdSubsampledLinear",
    "MiSSSubsampledLinear",
    "EVASubsampledLinear",
    "RandLoRASubsampledLinear",
    "LoRAOneSubsampledLinear",
    "DeLoRASubsampledLinear",
    "PSOFTSubsampledLinear",
    "WaveFTSubsampledLinear",
    "GraLoRASubsampledLinear",
    "OFTInSubsampledLinear",
    "DEFTSubsampledLinear",
    "TinyLoRASubsampledLinear",
    "SuperTuningSubsampledLinear",
    "HiRASubsampledLinear",
]

class LoRAChannelLastConv(LoRA, ChannelLastConvLayer):
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

class LoHaChannelLastConv(LoHa, ChannelLastConvLayer):
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

class IA3ChannelLastConv(IA3, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InChannelLastConv(IA3In, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutChannelLastConv(IA3Out, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAChannelLastConv(AdaLoRA, ChannelLastConvLayer):
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

class OFTChannelLastConv(OFT, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAChannelLastConv(LoRAFA, ChannelLastConvLayer):
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

class LoKrChannelLastConv(LoKr, ChannelLastConvLayer):
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

class VeRAChannelLastConv(VeRA, ChannelLastConvLayer):
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

class VeRASharedChannelLastConv(VeRAShared, ChannelLastConvLayer):
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

class BOFTChannelLastConv(BOFT, ChannelLastConvLayer):
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

class TiedLoRAChannelLastConv(TiedLoRA, ChannelLastConvLayer):
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

class rsLoRAChannelLastConv(rsLoRA, ChannelLastConvLayer):
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

class DoRAChannelLastConv(DoRA, ChannelLastConvLayer):
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

class PiSSAChannelLastConv(PiSSA, ChannelLastConvLayer):
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

class FourierFTChannelLastConv(FourierFT, ChannelLastConvLayer):
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

class VBLoRAChannelLastConv(VBLoRA, ChannelLastConvLayer):
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

class HRAChannelLastConv(HRA, ChannelLastConvLayer):
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

class LoRAXSChannelLastConv(LoRAXS, ChannelLastConvLayer):
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

class OLoRAChannelLastConv(OLoRA, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAChannelLastConv(CorDA, ChannelLastConvLayer):
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

class MiLoRAChannelLastConv(MiLoRA, ChannelLastConvLayer):
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

class SHiRAChannelLastConv(SHiRA, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAChannelLastConv(LoRAGA, ChannelLastConvLayer):
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

class C3AChannelLastConv(C3A, ChannelLastConvLayer):
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

class RoAdChannelLastConv(RoAd, ChannelLastConvLayer):
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

class MiSSChannelLastConv(MiSS, ChannelLastConvLayer):
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

class EVAChannelLastConv(EVA, ChannelLastConvLayer):
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

class RandLoRAChannelLastConv(RandLoRA, ChannelLastConvLayer):
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

class LoRAOneChannelLastConv(LoRAOne, ChannelLastConvLayer):
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

class DeLoRAChannelLastConv(DeLoRA, ChannelLastConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTChannelLastConv(PSOFT, ChannelLastConvLayer):
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

class WaveFTChannelLastConv(WaveFT, ChannelLastConvLayer):
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

class GraLoRAChannelLastConv(GraLoRA, ChannelLastConvLayer):
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

class OFTInChannelLastConv(OFTIn, ChannelLastConvLayer):
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

class DEFTChannelLastConv(DEFT, ChannelLastConvLayer):
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

class TinyLoRAChannelLastConv(TinyLoRA, ChannelLastConvLayer):
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

class SuperTuningChannelLastConv(SuperTuning, ChannelLastConvLayer):
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

class HiRAChannelLastConv(HiRA, ChannelLastConvLayer):
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

class LoRAChannelLastConvTranspose(LoRA, ChannelLastConvTransposeLayer):
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

class LoHaChannelLastConvTranspose(LoHa, ChannelLastConvTransposeLayer):
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

class IA3ChannelLastConvTranspose(IA3, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InChannelLastConvTranspose(IA3In, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutChannelLastConvTranspose(IA3Out, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAChannelLastConvTranspose(AdaLoRA, ChannelLastConvTransposeLayer):
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

class OFTChannelLastConvTranspose(OFT, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAChannelLastConvTranspose(LoRAFA, ChannelLastConvTransposeLayer):
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

class LoKrChannelLastConvTranspose(LoKr, ChannelLastConvTransposeLayer):
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

class VeRAChannelLastConvTranspose(VeRA, ChannelLastConvTransposeLayer):
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

class VeRASharedChannelLastConvTranspose(VeRAShared, ChannelLastConvTransposeLayer):
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

class BOFTChannelLastConvTranspose(BOFT, ChannelLastConvTransposeLayer):
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

class TiedLoRAChannelLastConvTranspose(TiedLoRA, ChannelLastConvTransposeLayer):
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

class rsLoRAChannelLastConvTranspose(rsLoRA, ChannelLastConvTransposeLayer):
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

class DoRAChannelLastConvTranspose(DoRA, ChannelLastConvTransposeLayer):
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

class PiSSAChannelLastConvTranspose(PiSSA, ChannelLastConvTransposeLayer):
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

class FourierFTChannelLastConvTranspose(FourierFT, ChannelLastConvTransposeLayer):
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

class VBLoRAChannelLastConvTranspose(VBLoRA, ChannelLastConvTransposeLayer):
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

class HRAChannelLastConvTranspose(HRA, ChannelLastConvTransposeLayer):
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

class LoRAXSChannelLastConvTranspose(LoRAXS, ChannelLastConvTransposeLayer):
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

class OLoRAChannelLastConvTranspose(OLoRA, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAChannelLastConvTranspose(CorDA, ChannelLastConvTransposeLayer):
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

class MiLoRAChannelLastConvTranspose(MiLoRA, ChannelLastConvTransposeLayer):
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

class SHiRAChannelLastConvTranspose(SHiRA, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAChannelLastConvTranspose(LoRAGA, ChannelLastConvTransposeLayer):
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

class C3AChannelLastConvTranspose(C3A, ChannelLastConvTransposeLayer):
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

class RoAdChannelLastConvTranspose(RoAd, ChannelLastConvTransposeLayer):
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

class MiSSChannelLastConvTranspose(MiSS, ChannelLastConvTransposeLayer):
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

class EVAChannelLastConvTranspose(EVA, ChannelLastConvTransposeLayer):
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

class RandLoRAChannelLastConvTranspose(RandLoRA, ChannelLastConvTransposeLayer):
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

class LoRAOneChannelLastConvTranspose(LoRAOne, ChannelLastConvTransposeLayer):
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

class DeLoRAChannelLastConvTranspose(DeLoRA, ChannelLastConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTChannelLastConvTranspose(PSOFT, ChannelLastConvTransposeLayer):
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

class WaveFTChannelLastConvTranspose(WaveFT, ChannelLastConvTransposeLayer):
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

class GraLoRAChannelLastConvTranspose(GraLoRA, ChannelLastConvTransposeLayer):
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

class OFTInChannelLastConvTranspose(OFTIn, ChannelLastConvTransposeLayer):
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

class DEFTChannelLastConvTranspose(DEFT, ChannelLastConvTransposeLayer):
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

class TinyLoRAChannelLastConvTranspose(TinyLoRA, ChannelLastConvTransposeLayer):
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

class SuperTuningChannelLastConvTranspose(SuperTuning, ChannelLastConvTransposeLayer):
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

class HiRAChannelLastConvTranspose(HiRA, ChannelLastConvTransposeLayer):
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

class LoRASubsampledLinear(LoRA, SubsampledLinearLayer):
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

class LoHaSubsampledLinear(LoHa, SubsampledLinearLayer):
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

class IA3SubsampledLinear(IA3, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InSubsampledLinear(IA3In, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutSubsampledLinear(IA3Out, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRASubsampledLinear(AdaLoRA, SubsampledLinearLayer):
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

class OFTSubsampledLinear(OFT, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFASubsampledLinear(LoRAFA, SubsampledLinearLayer):
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

class LoKrSubsampledLinear(LoKr, SubsampledLinearLayer):
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

class VeRASubsampledLinear(VeRA, SubsampledLinearLayer):
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

class VeRASharedSubsampledLinear(VeRAShared, SubsampledLinearLayer):
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

class BOFTSubsampledLinear(BOFT, SubsampledLinearLayer):
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

class TiedLoRASubsampledLinear(TiedLoRA, SubsampledLinearLayer):
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

class rsLoRASubsampledLinear(rsLoRA, SubsampledLinearLayer):
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

class DoRASubsampledLinear(DoRA, SubsampledLinearLayer):
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

class PiSSASubsampledLinear(PiSSA, SubsampledLinearLayer):
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

class FourierFTSubsampledLinear(FourierFT, SubsampledLinearLayer):
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

class VBLoRASubsampledLinear(VBLoRA, SubsampledLinearLayer):
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

class HRASubsampledLinear(HRA, SubsampledLinearLayer):
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

class LoRAXSSubsampledLinear(LoRAXS, SubsampledLinearLayer):
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

class OLoRASubsampledLinear(OLoRA, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDASubsampledLinear(CorDA, SubsampledLinearLayer):
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

class MiLoRASubsampledLinear(MiLoRA, SubsampledLinearLayer):
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

class SHiRASubsampledLinear(SHiRA, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGASubsampledLinear(LoRAGA, SubsampledLinearLayer):
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

class C3ASubsampledLinear(C3A, SubsampledLinearLayer):
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

class RoAdSubsampledLinear(RoAd, SubsampledLinearLayer):
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

class MiSSSubsampledLinear(MiSS, SubsampledLinearLayer):
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

class EVASubsampledLinear(EVA, SubsampledLinearLayer):
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

class RandLoRASubsampledLinear(RandLoRA, SubsampledLinearLayer):
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

class LoRAOneSubsampledLinear(LoRAOne, SubsampledLinearLayer):
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

class DeLoRASubsampledLinear(DeLoRA, SubsampledLinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTSubsampledLinear(PSOFT, SubsampledLinearLayer):
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

class WaveFTSubsampledLinear(WaveFT, SubsampledLinearLayer):
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

class GraLoRASubsampledLinear(GraLoRA, SubsampledLinearLayer):
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

class OFTInSubsampledLinear(OFTIn, SubsampledLinearLayer):
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

class DEFTSubsampledLinear(DEFT, SubsampledLinearLayer):
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

class TinyLoRASubsampledLinear(TinyLoRA, SubsampledLinearLayer):
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

class SuperTuningSubsampledLinear(SuperTuning, SubsampledLinearLayer):
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

class HiRASubsampledLinear(HiRA, SubsampledLinearLayer):
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

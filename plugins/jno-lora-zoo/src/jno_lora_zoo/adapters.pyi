# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layers.conv import ConvLayer
from .layers.conv import ConvTransposeLayer
from .layers.in_norm import InNormLayer
from .layers.linear import LinearLayer
from .methods.adalora import AdaLoRA
from .methods.boft import BOFT
from .methods.c3a import C3A
from .methods.corda import CorDA
from .methods.deft import DEFT
from .methods.delora import DeLoRA
from .methods.dora import DoRA
from .methods.eva import EVA
from .methods.fourierft import FourierFT
from .methods.gralora import GraLoRA
from .methods.hira import HiRA
from .methods.hra import HRA
from .methods.ia3 import IA3
from .methods.ia3 import IA3In
from .methods.ia3 import IA3Out
from .methods.loha import LoHa
from .methods.lokr import LoKr
from .methods.lora import LoRA
from .methods.lora import LoRAFA
from .methods.lora import rsLoRA
from .methods.lora_ga import LoRAGA
from .methods.lora_one import LoRAOne
from .methods.lora_xs import LoRAXS
from .methods.miss import MiSS
from .methods.oft import OFT
from .methods.oft_in import OFTIn
from .methods.pissa import MiLoRA
from .methods.pissa import OLoRA
from .methods.pissa import PiSSA
from .methods.psoft import PSOFT
from .methods.randlora import RandLoRA
from .methods.road import RoAd
from .methods.shira import SHiRA
from .methods.supertuning import SuperTuning
from .methods.tied_lora import TiedLoRA
from .methods.tinylora import TinyLoRA
from .methods.vb_lora import VBLoRA
from .methods.vera import VeRA
from .methods.vera_shared import VeRAShared
from .methods.waveft import WaveFT

__all__ = [
    "LoRALinear",
    "LoHaLinear",
    "IA3Linear",
    "IA3InLinear",
    "IA3OutLinear",
    "AdaLoRALinear",
    "OFTLinear",
    "LoRAFALinear",
    "LoKrLinear",
    "VeRALinear",
    "VeRASharedLinear",
    "BOFTLinear",
    "TiedLoRALinear",
    "rsLoRALinear",
    "DoRALinear",
    "PiSSALinear",
    "FourierFTLinear",
    "VBLoRALinear",
    "HRALinear",
    "LoRAXSLinear",
    "OLoRALinear",
    "CorDALinear",
    "MiLoRALinear",
    "SHiRALinear",
    "LoRAGALinear",
    "C3ALinear",
    "RoAdLinear",
    "MiSSLinear",
    "EVALinear",
    "RandLoRALinear",
    "LoRAOneLinear",
    "DeLoRALinear",
    "PSOFTLinear",
    "WaveFTLinear",
    "GraLoRALinear",
    "OFTInLinear",
    "DEFTLinear",
    "TinyLoRALinear",
    "SuperTuningLinear",
    "HiRALinear",
    "LoRAConv",
    "LoHaConv",
    "IA3Conv",
    "IA3InConv",
    "IA3OutConv",
    "AdaLoRAConv",
    "OFTConv",
    "LoRAFAConv",
    "LoKrConv",
    "VeRAConv",
    "VeRASharedConv",
    "BOFTConv",
    "TiedLoRAConv",
    "rsLoRAConv",
    "DoRAConv",
    "PiSSAConv",
    "FourierFTConv",
    "VBLoRAConv",
    "HRAConv",
    "LoRAXSConv",
    "OLoRAConv",
    "CorDAConv",
    "MiLoRAConv",
    "SHiRAConv",
    "LoRAGAConv",
    "C3AConv",
    "RoAdConv",
    "MiSSConv",
    "EVAConv",
    "RandLoRAConv",
    "LoRAOneConv",
    "DeLoRAConv",
    "PSOFTConv",
    "WaveFTConv",
    "GraLoRAConv",
    "OFTInConv",
    "DEFTConv",
    "TinyLoRAConv",
    "SuperTuningConv",
    "HiRAConv",
    "LoRAConvTranspose",
    "LoHaConvTranspose",
    "IA3ConvTranspose",
    "IA3InConvTranspose",
    "IA3OutConvTranspose",
    "AdaLoRAConvTranspose",
    "OFTConvTranspose",
    "LoRAFAConvTranspose",
    "LoKrConvTranspose",
    "VeRAConvTranspose",
    "VeRASharedConvTranspose",
    "BOFTConvTranspose",
    "TiedLoRAConvTranspose",
    "rsLoRAConvTranspose",
    "DoRAConvTranspose",
    "PiSSAConvTranspose",
    "FourierFTConvTranspose",
    "VBLoRAConvTranspose",
    "HRAConvTranspose",
    "LoRAXSConvTranspose",
    "OLoRAConvTranspose",
    "CorDAConvTranspose",
    "MiLoRAConvTranspose",
    "SHiRAConvTranspose",
    "LoRAGAConvTranspose",
    "C3AConvTranspose",
    "RoAdConvTranspose",
    "MiSSConvTranspose",
    "EVAConvTranspose",
    "RandLoRAConvTranspose",
    "LoRAOneConvTranspose",
    "DeLoRAConvTranspose",
    "PSOFTConvTranspose",
    "WaveFTConvTranspose",
    "GraLoRAConvTranspose",
    "OFTInConvTranspose",
    "DEFTConvTranspose",
    "TinyLoRAConvTranspose",
    "SuperTuningConvTranspose",
    "HiRAConvTranspose",
    "LoRAInNorm",
    "LoHaInNorm",
    "IA3InNorm",
    "IA3InInNorm",
    "IA3OutInNorm",
    "AdaLoRAInNorm",
    "OFTInNorm",
    "LoRAFAInNorm",
    "LoKrInNorm",
    "VeRAInNorm",
    "VeRASharedInNorm",
    "BOFTInNorm",
    "TiedLoRAInNorm",
    "rsLoRAInNorm",
    "DoRAInNorm",
    "PiSSAInNorm",
    "FourierFTInNorm",
    "VBLoRAInNorm",
    "HRAInNorm",
    "LoRAXSInNorm",
    "OLoRAInNorm",
    "CorDAInNorm",
    "MiLoRAInNorm",
    "SHiRAInNorm",
    "LoRAGAInNorm",
    "C3AInNorm",
    "RoAdInNorm",
    "MiSSInNorm",
    "EVAInNorm",
    "RandLoRAInNorm",
    "LoRAOneInNorm",
    "DeLoRAInNorm",
    "PSOFTInNorm",
    "WaveFTInNorm",
    "GraLoRAInNorm",
    "OFTInInNorm",
    "DEFTInNorm",
    "TinyLoRAInNorm",
    "SuperTuningInNorm",
    "HiRAInNorm",
]

class LoRALinear(LoRA, LinearLayer):
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

class LoHaLinear(LoHa, LinearLayer):
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

class IA3Linear(IA3, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InLinear(IA3In, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutLinear(IA3Out, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRALinear(AdaLoRA, LinearLayer):
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

class OFTLinear(OFT, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFALinear(LoRAFA, LinearLayer):
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

class LoKrLinear(LoKr, LinearLayer):
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

class VeRALinear(VeRA, LinearLayer):
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

class VeRASharedLinear(VeRAShared, LinearLayer):
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

class BOFTLinear(BOFT, LinearLayer):
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

class TiedLoRALinear(TiedLoRA, LinearLayer):
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

class rsLoRALinear(rsLoRA, LinearLayer):
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

class DoRALinear(DoRA, LinearLayer):
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

class PiSSALinear(PiSSA, LinearLayer):
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

class FourierFTLinear(FourierFT, LinearLayer):
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

class VBLoRALinear(VBLoRA, LinearLayer):
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

class HRALinear(HRA, LinearLayer):
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

class LoRAXSLinear(LoRAXS, LinearLayer):
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

class OLoRALinear(OLoRA, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDALinear(CorDA, LinearLayer):
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

class MiLoRALinear(MiLoRA, LinearLayer):
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

class SHiRALinear(SHiRA, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGALinear(LoRAGA, LinearLayer):
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

class C3ALinear(C3A, LinearLayer):
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

class RoAdLinear(RoAd, LinearLayer):
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

class MiSSLinear(MiSS, LinearLayer):
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

class EVALinear(EVA, LinearLayer):
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

class RandLoRALinear(RandLoRA, LinearLayer):
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

class LoRAOneLinear(LoRAOne, LinearLayer):
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

class DeLoRALinear(DeLoRA, LinearLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTLinear(PSOFT, LinearLayer):
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

class WaveFTLinear(WaveFT, LinearLayer):
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

class GraLoRALinear(GraLoRA, LinearLayer):
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

class OFTInLinear(OFTIn, LinearLayer):
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

class DEFTLinear(DEFT, LinearLayer):
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

class TinyLoRALinear(TinyLoRA, LinearLayer):
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

class SuperTuningLinear(SuperTuning, LinearLayer):
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

class HiRALinear(HiRA, LinearLayer):
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

class LoRAConv(LoRA, ConvLayer):
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

class LoHaConv(LoHa, ConvLayer):
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

class IA3Conv(IA3, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InConv(IA3In, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutConv(IA3Out, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAConv(AdaLoRA, ConvLayer):
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

class OFTConv(OFT, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAConv(LoRAFA, ConvLayer):
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

class LoKrConv(LoKr, ConvLayer):
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

class VeRAConv(VeRA, ConvLayer):
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

class VeRASharedConv(VeRAShared, ConvLayer):
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

class BOFTConv(BOFT, ConvLayer):
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

class TiedLoRAConv(TiedLoRA, ConvLayer):
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

class rsLoRAConv(rsLoRA, ConvLayer):
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

class DoRAConv(DoRA, ConvLayer):
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

class PiSSAConv(PiSSA, ConvLayer):
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

class FourierFTConv(FourierFT, ConvLayer):
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

class VBLoRAConv(VBLoRA, ConvLayer):
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

class HRAConv(HRA, ConvLayer):
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

class LoRAXSConv(LoRAXS, ConvLayer):
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

class OLoRAConv(OLoRA, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAConv(CorDA, ConvLayer):
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

class MiLoRAConv(MiLoRA, ConvLayer):
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

class SHiRAConv(SHiRA, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAConv(LoRAGA, ConvLayer):
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

class C3AConv(C3A, ConvLayer):
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

class RoAdConv(RoAd, ConvLayer):
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

class MiSSConv(MiSS, ConvLayer):
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

class EVAConv(EVA, ConvLayer):
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

class RandLoRAConv(RandLoRA, ConvLayer):
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

class LoRAOneConv(LoRAOne, ConvLayer):
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

class DeLoRAConv(DeLoRA, ConvLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTConv(PSOFT, ConvLayer):
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

class WaveFTConv(WaveFT, ConvLayer):
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

class GraLoRAConv(GraLoRA, ConvLayer):
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

class OFTInConv(OFTIn, ConvLayer):
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

class DEFTConv(DEFT, ConvLayer):
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

class TinyLoRAConv(TinyLoRA, ConvLayer):
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

class SuperTuningConv(SuperTuning, ConvLayer):
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

class HiRAConv(HiRA, ConvLayer):
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

class LoRAConvTranspose(LoRA, ConvTransposeLayer):
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

class LoHaConvTranspose(LoHa, ConvTransposeLayer):
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

class IA3ConvTranspose(IA3, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InConvTranspose(IA3In, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutConvTranspose(IA3Out, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAConvTranspose(AdaLoRA, ConvTransposeLayer):
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

class OFTConvTranspose(OFT, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAConvTranspose(LoRAFA, ConvTransposeLayer):
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

class LoKrConvTranspose(LoKr, ConvTransposeLayer):
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

class VeRAConvTranspose(VeRA, ConvTransposeLayer):
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

class VeRASharedConvTranspose(VeRAShared, ConvTransposeLayer):
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

class BOFTConvTranspose(BOFT, ConvTransposeLayer):
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

class TiedLoRAConvTranspose(TiedLoRA, ConvTransposeLayer):
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

class rsLoRAConvTranspose(rsLoRA, ConvTransposeLayer):
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

class DoRAConvTranspose(DoRA, ConvTransposeLayer):
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

class PiSSAConvTranspose(PiSSA, ConvTransposeLayer):
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

class FourierFTConvTranspose(FourierFT, ConvTransposeLayer):
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

class VBLoRAConvTranspose(VBLoRA, ConvTransposeLayer):
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

class HRAConvTranspose(HRA, ConvTransposeLayer):
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

class LoRAXSConvTranspose(LoRAXS, ConvTransposeLayer):
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

class OLoRAConvTranspose(OLoRA, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAConvTranspose(CorDA, ConvTransposeLayer):
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

class MiLoRAConvTranspose(MiLoRA, ConvTransposeLayer):
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

class SHiRAConvTranspose(SHiRA, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAConvTranspose(LoRAGA, ConvTransposeLayer):
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

class C3AConvTranspose(C3A, ConvTransposeLayer):
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

class RoAdConvTranspose(RoAd, ConvTransposeLayer):
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

class MiSSConvTranspose(MiSS, ConvTransposeLayer):
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

class EVAConvTranspose(EVA, ConvTransposeLayer):
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

class RandLoRAConvTranspose(RandLoRA, ConvTransposeLayer):
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

class LoRAOneConvTranspose(LoRAOne, ConvTransposeLayer):
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

class DeLoRAConvTranspose(DeLoRA, ConvTransposeLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTConvTranspose(PSOFT, ConvTransposeLayer):
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

class WaveFTConvTranspose(WaveFT, ConvTransposeLayer):
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

class GraLoRAConvTranspose(GraLoRA, ConvTransposeLayer):
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

class OFTInConvTranspose(OFTIn, ConvTransposeLayer):
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

class DEFTConvTranspose(DEFT, ConvTransposeLayer):
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

class TinyLoRAConvTranspose(TinyLoRA, ConvTransposeLayer):
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

class SuperTuningConvTranspose(SuperTuning, ConvTransposeLayer):
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

class HiRAConvTranspose(HiRA, ConvTransposeLayer):
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

class LoRAInNorm(LoRA, InNormLayer):
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

class LoHaInNorm(LoHa, InNormLayer):
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

class IA3InNorm(IA3, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3InInNorm(IA3In, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class IA3OutInNorm(IA3Out, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class AdaLoRAInNorm(AdaLoRA, InNormLayer):
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

class OFTInNorm(OFT, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAFAInNorm(LoRAFA, InNormLayer):
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

class LoKrInNorm(LoKr, InNormLayer):
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

class VeRAInNorm(VeRA, InNormLayer):
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

class VeRASharedInNorm(VeRAShared, InNormLayer):
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

class BOFTInNorm(BOFT, InNormLayer):
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

class TiedLoRAInNorm(TiedLoRA, InNormLayer):
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

class rsLoRAInNorm(rsLoRA, InNormLayer):
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

class DoRAInNorm(DoRA, InNormLayer):
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

class PiSSAInNorm(PiSSA, InNormLayer):
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

class FourierFTInNorm(FourierFT, InNormLayer):
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

class VBLoRAInNorm(VBLoRA, InNormLayer):
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

class HRAInNorm(HRA, InNormLayer):
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

class LoRAXSInNorm(LoRAXS, InNormLayer):
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

class OLoRAInNorm(OLoRA, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class CorDAInNorm(CorDA, InNormLayer):
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

class MiLoRAInNorm(MiLoRA, InNormLayer):
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

class SHiRAInNorm(SHiRA, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class LoRAGAInNorm(LoRAGA, InNormLayer):
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

class C3AInNorm(C3A, InNormLayer):
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

class RoAdInNorm(RoAd, InNormLayer):
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

class MiSSInNorm(MiSS, InNormLayer):
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

class EVAInNorm(EVA, InNormLayer):
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

class RandLoRAInNorm(RandLoRA, InNormLayer):
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

class LoRAOneInNorm(LoRAOne, InNormLayer):
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

class DeLoRAInNorm(DeLoRA, InNormLayer):
    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        key: Any,
        adapter_dtype: Any = ...,
    ) -> None: ...

class PSOFTInNorm(PSOFT, InNormLayer):
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

class WaveFTInNorm(WaveFT, InNormLayer):
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

class GraLoRAInNorm(GraLoRA, InNormLayer):
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

class OFTInInNorm(OFTIn, InNormLayer):
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

class DEFTInNorm(DEFT, InNormLayer):
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

class TinyLoRAInNorm(TinyLoRA, InNormLayer):
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

class SuperTuningInNorm(SuperTuning, InNormLayer):
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

class HiRAInNorm(HiRA, InNormLayer):
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

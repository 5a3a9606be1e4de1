# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layers.conv import ConvLayer
from .layers.conv import ConvTransposeLayer
from .layers.in_norm import InNormLayer
from .layers.linear import LinearLayer
from .methods.adalora import AdaLoRA
from .methods.delora import DeLoRA
from .methods.dora import DoRA
from .methods.fourierft import FourierFT
from .methods.ia3 import IA3
from .methods.lokr import LoKr
from .methods.lora import LoRA
from .methods.lora import LoRAFA
from .methods.lora import rsLoRA
from .methods.lora_xs import LoRAXS
from .methods.oft import OFT
from .methods.pissa import MiLoRA
from .methods.pissa import PiSSA
from .methods.shira import SHiRA
from .methods.supertuning import SuperTuning
from .methods.tinylora import TinyLoRA
from .methods.vera import VeRA
from .methods.waveft import WaveFT

__all__ = [
    "LoRALinear",
    "IA3Linear",
    "AdaLoRALinear",
    "OFTLinear",
    "LoRAFALinear",
    "LoKrLinear",
    "VeRALinear",
    "rsLoRALinear",
    "DoRALinear",
    "PiSSALinear",
    "FourierFTLinear",
    "LoRAXSLinear",
    "MiLoRALinear",
    "SHiRALinear",
    "DeLoRALinear",
    "WaveFTLinear",
    "TinyLoRALinear",
    "SuperTuningLinear",
    "LoRAConv",
    "IA3Conv",
    "AdaLoRAConv",
    "OFTConv",
    "LoRAFAConv",
    "LoKrConv",
    "VeRAConv",
    "rsLoRAConv",
    "DoRAConv",
    "PiSSAConv",
    "FourierFTConv",
    "LoRAXSConv",
    "MiLoRAConv",
    "SHiRAConv",
    "DeLoRAConv",
    "WaveFTConv",
    "TinyLoRAConv",
    "SuperTuningConv",
    "LoRAConvTranspose",
    "IA3ConvTranspose",
    "AdaLoRAConvTranspose",
    "OFTConvTranspose",
    "LoRAFAConvTranspose",
    "LoKrConvTranspose",
    "VeRAConvTranspose",
    "rsLoRAConvTranspose",
    "DoRAConvTranspose",
    "PiSSAConvTranspose",
    "FourierFTConvTranspose",
    "LoRAXSConvTranspose",
    "MiLoRAConvTranspose",
    "SHiRAConvTranspose",
    "DeLoRAConvTranspose",
    "WaveFTConvTranspose",
    "TinyLoRAConvTranspose",
    "SuperTuningConvTranspose",
    "LoRAInNorm",
    "IA3InNorm",
    "AdaLoRAInNorm",
    "OFTInNorm",
    "LoRAFAInNorm",
    "LoKrInNorm",
    "VeRAInNorm",
    "rsLoRAInNorm",
    "DoRAInNorm",
    "PiSSAInNorm",
    "FourierFTInNorm",
    "LoRAXSInNorm",
    "MiLoRAInNorm",
    "SHiRAInNorm",
    "DeLoRAInNorm",
    "WaveFTInNorm",
    "TinyLoRAInNorm",
    "SuperTuningInNorm",
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

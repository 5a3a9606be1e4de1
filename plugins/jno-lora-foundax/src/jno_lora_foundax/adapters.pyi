# Written by `python tests/zoo/listings.py --write`.
# ruff: noqa
from typing import Any
from .layers import ChannelLastConvLayer
from .layers import ChannelLastConvTransposeLayer
from .layers import SubsampledLinearLayer
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
    "LoRAChannelLastConv",
    "IA3ChannelLastConv",
    "AdaLoRAChannelLastConv",
    "OFTChannelLastConv",
    "LoRAFAChannelLastConv",
    "LoKrChannelLastConv",
    "VeRAChannelLastConv",
    "rsLoRAChannelLastConv",
    "DoRAChannelLastConv",
    "PiSSAChannelLastConv",
    "FourierFTChannelLastConv",
    "LoRAXSChannelLastConv",
    "MiLoRAChannelLastConv",
    "SHiRAChannelLastConv",
    "DeLoRAChannelLastConv",
    "WaveFTChannelLastConv",
    "TinyLoRAChannelLastConv",
    "SuperTuningChannelLastConv",
    "LoRAChannelLastConvTranspose",
    "IA3ChannelLastConvTranspose",
    "AdaLoRAChannelLastConvTranspose",
    "OFTChannelLastConvTranspose",
    "LoRAFAChannelLastConvTranspose",
    "LoKrChannelLastConvTranspose",
    "VeRAChannelLastConvTranspose",
    "rsLoRAChannelLastConvTranspose",
    "DoRAChannelLastConvTranspose",
    "PiSSAChannelLastConvTranspose",
    "FourierFTChannelLastConvTranspose",
    "LoRAXSChannelLastConvTranspose",
    "MiLoRAChannelLastConvTranspose",
    "SHiRAChannelLastConvTranspose",
    "DeLoRAChannelLastConvTranspose",
    "WaveFTChannelLastConvTranspose",
    "TinyLoRAChannelLastConvTranspose",
    "SuperTuningChannelLastConvTranspose",
    "LoRASubsampledLinear",
    "IA3SubsampledLinear",
    "AdaLoRASubsampledLinear",
    "OFTSubsampledLinear",
    "LoRAFASubsampledLinear",
    "LoKrSubsampledLinear",
    "VeRASubsampledLinear",
    "rsLoRASubsampledLinear",
    "DoRASubsampledLinear",
    "PiSSASubsampledLinear",
    "FourierFTSubsampledLinear",
    "LoRAXSSubsampledLinear",
    "MiLoRASubsampledLinear",
    "SHiRASubsampledLinear",
    "DeLoRASubsampledLinear",
    "WaveFTSubsampledLinear",
    "TinyLoRASubsampledLinear",
    "SuperTuningSubsampledLinear",
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

"""Every method of the zoo on foundax's layers. `adapters.pyi` lists them for type checkers."""

from jno_lora_zoo import LoRA, adapters_for, made_when_named

from .layers import ChannelLastConvLayer, ChannelLastConvTransposeLayer, SubsampledLinearLayer

ADAPTERS = (
    adapters_for(ChannelLastConvLayer, __name__, auto=LoRA)
    | adapters_for(ChannelLastConvTransposeLayer, __name__, auto=LoRA)
    | adapters_for(SubsampledLinearLayer, __name__, auto=LoRA)
)
__getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
__all__ = list(ADAPTERS)  # pyright: ignore[reportUnsupportedDunderAll]

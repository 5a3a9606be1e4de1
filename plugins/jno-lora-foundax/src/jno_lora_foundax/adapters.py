"""Every method of the zoo on foundax's layers. `adapters.pyi` lists them for type checkers."""

from jno_lora_zoo import LoRA, adapters_for

from .layers import ChannelLastConvLayer, ChannelLastConvTransposeLayer, SubsampledLinearLayer

_adapters = {
    **adapters_for(ChannelLastConvLayer, __name__, auto=LoRA),
    **adapters_for(ChannelLastConvTransposeLayer, __name__, auto=LoRA),
    **adapters_for(SubsampledLinearLayer, __name__, auto=LoRA),
}
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]

"""Every method of the zoo on the layers of this plugin. `adapters.pyi` lists the adapters."""

from typing import Any

from jno.lora import LoRAWrapper
from jno.lora.extending import default_adapters
from jno_lora_zoo import LoRA, adapters_for, made_when_named

from . import _plain as _plain
from ._classes import HaliaxConv, HaliaxLinear
from .layers import HaliaxConvLayer, HaliaxEmbeddingLayer, HaliaxLinearLayer

ADAPTERS = (
    adapters_for(HaliaxLinearLayer, __name__, auto=LoRA)
    | adapters_for(HaliaxEmbeddingLayer, __name__, variant="{}-embedding")
    | adapters_for(HaliaxConvLayer, __name__, auto=LoRA)
)
__getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
__all__ = list(ADAPTERS)  # pyright: ignore[reportUnsupportedDunderAll]


@default_adapters.register(HaliaxLinear)
@default_adapters.register(HaliaxConv)
def _(layer: Any) -> tuple[type[LoRAWrapper], ...]:
    return ADAPTERS["LoRAHaliaxLinear"], ADAPTERS["LoRAHaliaxConv"]

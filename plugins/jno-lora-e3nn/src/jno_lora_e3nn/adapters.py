"""Every method of the zoo on the layers of this plugin. `adapters.pyi` lists the adapters."""

from typing import Any

from jno.lora import LoRAWrapper
from jno.lora.extending import default_adapters
from jno_lora_zoo import LoRA, adapters_for

from ._classes import E3nnLinear, NequixLinear
from .layers import E3nnLayer, E3nnPerSpeciesLayer
from .radial import RadialLayer

_adapters = {
    **adapters_for(E3nnLayer, __name__, auto=LoRA),
    **adapters_for(RadialLayer, __name__, auto=LoRA),
    **adapters_for(E3nnPerSpeciesLayer, __name__, variant="{}-per-species"),
}
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]


@default_adapters.register(E3nnLinear)
def _(layer: Any) -> tuple[type[LoRAWrapper], ...]:
    return (_adapters["LoRAE3nn"],)


@default_adapters.register(NequixLinear)
def _(layer: Any) -> tuple[type[LoRAWrapper], ...]:
    return (_adapters["LoRARadial"],)

"""Every method of the zoo on the layers of this plugin. `adapters.pyi` lists the adapters."""

from jno.lora import LoRAWrapper
from jno.lora.extending import default_adapters
from jno_lora_zoo import LoRA, adapters_for, made_when_named

from ._classes import E3nnLinear, NequixLinear
from .layers import E3nnLayer, E3nnPerSpeciesLayer
from .radial import RadialLayer

ADAPTERS = (
    adapters_for(E3nnLayer, __name__, auto=LoRA)
    | adapters_for(RadialLayer, __name__, auto=LoRA)
    | adapters_for(E3nnPerSpeciesLayer, __name__, variant="{}-per-species")
)
__getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
__all__ = list(ADAPTERS)  # pyright: ignore[reportUnsupportedDunderAll]


@default_adapters.register(E3nnLinear)
def _(layer: E3nnLinear) -> tuple[type[LoRAWrapper], ...]:
    return (ADAPTERS["LoRAE3nn"],)


@default_adapters.register(NequixLinear)
def _(layer: NequixLinear) -> tuple[type[LoRAWrapper], ...]:
    return (ADAPTERS["LoRARadial"],)

"""Every method of the zoo on declared arrays. `adapters.pyi` lists them for type checkers."""

from jno.lora import LoRAWrapper
from jno.lora.extending import default_adapters
from jno_lora_zoo import LoRA, adapters_for, made_when_named

from ._box import ArrayLayer, DeclaredArray

ADAPTERS = adapters_for(ArrayLayer, __name__, auto=LoRA)
__getattr__, __dir__ = made_when_named(globals(), ADAPTERS)
__all__ = list(ADAPTERS)  # pyright: ignore[reportUnsupportedDunderAll]


@default_adapters.register(DeclaredArray)
def _(layer: DeclaredArray) -> tuple[type[LoRAWrapper], ...]:
    """`net.lora(rank=4)` adapts every declared array, because it was declared for that."""
    return (ADAPTERS["LoRAArray"],)

"""Every method of the zoo on declared arrays. `adapters.pyi` lists them for type checkers."""

from jno.lora import LoRAWrapper
from jno.lora.extending import default_adapters
from jno_lora_zoo import LoRA, adapters_for

from ._box import ArrayLayer, DeclaredArray

_adapters = adapters_for(ArrayLayer, __name__, auto=LoRA)
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]


@default_adapters.register(DeclaredArray)
def _(layer: DeclaredArray) -> tuple[type[LoRAWrapper], ...]:
    """`net.lora(rank=4)` adapts every declared array, because declaring asks for it."""
    return (_adapters["LoRAArray"],)

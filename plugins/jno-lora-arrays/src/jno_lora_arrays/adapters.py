"""Every method of the zoo on declared arrays. `adapters.pyi` lists them for type checkers."""

from jno_lora_zoo import LoRA, adapters_for

from .layer import ArrayLayer

_adapters = adapters_for(ArrayLayer, __name__, auto=LoRA)
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]

"""Every method of the zoo on embedding tables. `adapters.pyi` lists them for type checkers."""

from jno_lora_zoo import EmbeddingLayer, LoRA, adapters_for

_adapters = adapters_for(
    EmbeddingLayer, __name__, auto=LoRA, variant="{}-embedding", former_variant="{}"
)
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]

"""Every method of the zoo on recurrent cells. `adapters.pyi` lists them for type checkers."""

from jno_lora_zoo import LoRA, RecurrentLayer, adapters_for

_adapters = adapters_for(
    RecurrentLayer, __name__, auto=LoRA, variant="{}-recurrent", former_variant="{}"
)
globals().update(_adapters)
__all__ = list(_adapters)  # pyright: ignore[reportUnsupportedDunderAll]

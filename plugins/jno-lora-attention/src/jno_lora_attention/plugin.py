"""The entry point. It imports the adapters only when asked for them."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The three adapters."""
    from . import IA3Attention, LoRAAttention, PrefixAttention

    return [LoRAAttention, IA3Attention, PrefixAttention]

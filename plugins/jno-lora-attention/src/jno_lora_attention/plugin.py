"""The entry point, which imports the adapters only when they are needed."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The adapters."""
    from . import IA3Attention, LoRAAttention, PrefixAttention

    return [LoRAAttention, IA3Attention, PrefixAttention]

"""The entry point. It imports the adapters only when they are needed."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1
jno_lora_cases = "jno_lora_routed._cases:CASES"  # the other adapters need no options


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """HydraLoRA, a mixture of LoRA experts, Lily, Poly, activated LoRA and PEANuT."""
    from . import ActivatedLoRA, HydraLoRA, Lily, MoELoRA, PEANuTLinear, Poly

    return [HydraLoRA, MoELoRA, Lily, Poly, ActivatedLoRA, PEANuTLinear]

"""The entry point. It imports the adapters only when asked for them, and never foundax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The zoo's methods on foundax's layers, adapters of spectral weights, and bottlenecks."""
    from jno_lora_zoo import adapters_defined_in

    from . import adapters, bottleneck, spectral, spectral_cp, spectral_gain

    return [
        adapter
        for module in (adapters, spectral, spectral_gain, spectral_cp, bottleneck)
        for adapter in adapters_defined_in(module)
    ]

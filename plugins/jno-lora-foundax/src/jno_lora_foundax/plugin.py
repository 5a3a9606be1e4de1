"""The entry point: tiny, so that finding it costs nothing. It does not import foundax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """Every adapter that `adapters.py` defines, those of spectral weights, and bottlenecks."""
    from jno_lora_zoo import adapters_defined_in

    from . import adapters, bottleneck, spectral

    return [
        adapter
        for module in (adapters, spectral, bottleneck)
        for adapter in adapters_defined_in(module)
    ]

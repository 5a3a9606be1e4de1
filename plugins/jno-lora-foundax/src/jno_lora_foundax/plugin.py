"""The entry point: tiny, so that finding it costs nothing. It does not import foundax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """Every adapter that `adapters.py` defines, and those of spectral weights."""
    from jno_lora_zoo import adapters_defined_in

    from . import adapters
    from .spectral import GainSpectral, LoRASpectral, rsLoRASpectral

    return [*adapters_defined_in(adapters), LoRASpectral, rsLoRASpectral, GainSpectral]

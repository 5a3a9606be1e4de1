"""The entry point: tiny, so that finding it costs nothing. It does not import foundax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """Every adapter that `adapters.py` defines, and those of spectral weights."""
    from . import adapters
    from .spectral import LoRASpectral, rsLoRASpectral

    columns = [cls for cls in vars(adapters).values() if _is_defined_in(cls, adapters.__name__)]
    return [*columns, LoRASpectral, rsLoRASpectral]


def _is_defined_in(cls: object, module: str) -> bool:
    return isinstance(cls, type) and issubclass(cls, LoRAWrapper) and cls.__module__ == module

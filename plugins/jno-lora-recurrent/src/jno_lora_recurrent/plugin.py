"""The entry point: tiny, so that finding it costs nothing."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """Every adapter that `adapters.py` defines."""
    from . import adapters

    return [cls for cls in vars(adapters).values() if _is_defined_in(cls, adapters.__name__)]


def _is_defined_in(cls: object, module: str) -> bool:
    return isinstance(cls, type) and issubclass(cls, LoRAWrapper) and cls.__module__ == module

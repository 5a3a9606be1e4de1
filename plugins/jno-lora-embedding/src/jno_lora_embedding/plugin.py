"""The entry point. It imports the adapters only when asked for them."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """Every adapter that `adapters.py` defines."""
    from jno_lora_zoo import adapters_defined_in

    from . import adapters

    return adapters_defined_in(adapters)

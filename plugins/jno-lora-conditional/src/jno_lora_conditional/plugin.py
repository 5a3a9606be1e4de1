"""The entry point, which is tiny so that discovery is cheap."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The class by which files name an adapter with a scale and a shift (`film=True`)."""
    from ._film import Modulated

    return [Modulated]

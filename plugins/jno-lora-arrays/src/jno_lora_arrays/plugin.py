"""The entry point, which is tiny so that discovery is cheap."""

from collections.abc import Iterable

from jno.lora import hookimpl
from jno.lora.extending import LazyAdapter

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[LazyAdapter]:
    """All adapters of `adapters.py`. Each class is made when it is first used."""
    from .adapters import ADAPTERS

    return ADAPTERS.data.values()

"""The entry point: tiny, so that finding it costs nothing."""

from collections.abc import Iterable

from jno.lora import hookimpl
from jno.lora.parts import LazyAdapter

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[LazyAdapter]:
    """Every adapter of `adapters.py`. Its class is made when it is used."""
    from .adapters import ADAPTERS

    return ADAPTERS.data.values()

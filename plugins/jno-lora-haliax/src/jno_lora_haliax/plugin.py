"""The entry point, which imports the adapters only when they are needed, and never Haliax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl
from jno.lora.extending import LazyAdapter

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper] | LazyAdapter]:
    """The zoo's methods on Haliax's linear layers, embeddings and convolutions."""
    from .adapters import ADAPTERS

    return list(ADAPTERS.data.values())

"""The entry point, which is tiny so that discovery is cheap."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl
from jno.lora.extending import Sums

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The class by which files name a sum."""
    from ._sum import AdapterSum

    return [AdapterSum]


@hookimpl
def jno_lora_sums() -> Sums:
    """Sums of sets, for `net.activate("a", "b")`."""
    from ._named_sums import activate, deactivate
    from ._sum import split_adapters

    return Sums(activate, deactivate, split_adapters)

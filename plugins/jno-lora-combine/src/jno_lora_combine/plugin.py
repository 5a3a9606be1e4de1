"""The entry point, which is tiny so that discovery is cheap."""

from jno.lora import hookimpl
from jno.lora.extending import Sums

jno_lora_api = 1


@hookimpl
def jno_lora_sums() -> Sums:
    """Sums of sets, for `net.activate("a", "b")` and for files."""
    from ._named_sums import activate, deactivate
    from ._sum import AdapterSum, split_adapters

    return Sums(activate, deactivate, split_adapters, AdapterSum.of_members)

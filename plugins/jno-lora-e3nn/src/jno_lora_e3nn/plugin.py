"""The entry point, which imports the adapters only when they are needed, and never e3nn-jax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl
from jno.lora.extending import LazyAdapter

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper] | LazyAdapter]:
    """The zoo's methods on e3nn's linear layers and on nequix' radial layers, and MMEA."""
    from . import MMEA
    from .adapters import ADAPTERS

    return [*ADAPTERS.data.values(), MMEA]

"""The entry point, which imports the adapters only when they are needed, and never foundax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl
from jno.lora.extending import LazyAdapter

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper] | LazyAdapter]:
    """The zoo's methods on foundax's layers, adapters of spectral weights, and bottlenecks."""
    from jno_lora_zoo import adapters_defined_in

    from . import bottleneck, spectral, spectral_cp, spectral_gain
    from .adapters import ADAPTERS

    modules = (spectral, spectral_gain, spectral_cp, bottleneck)
    classes = [cls for module in modules for cls in adapters_defined_in(module)]
    return [*ADAPTERS.data.values(), *classes]

"""The entry point. It imports the adapters only when asked for them, and never e3nn-jax."""

from collections.abc import Iterable

from jno.lora import LoRAWrapper, hookimpl

jno_lora_api = 1


@hookimpl
def jno_lora_wrappers() -> Iterable[type[LoRAWrapper]]:
    """The zoo's methods on e3nn's linear layers and on nequix' radial layers, and MMEA."""
    from jno_lora_zoo import adapters_defined_in

    from . import MMEA, adapters

    return [*adapters_defined_in(adapters), MMEA]

"""jNO's own `net.lora(...)` with the dispatcher, registry and plugins of `jno.lora`.

    import jno

    net = jno.nn.wrap(model)
    net.freeze().lora(rank=4, wrapper="dora").optimizer(optax.adam(1e-3))

Where jNO is installed, importing jNO or `jno.lora` enables this. The environment variable
`JNO_LORA_JNO=0` leaves jNO with its own adapters.
"""

# First: inside jNO, this import enables the plugin, which needs the modules below.
import jno.lora  # noqa: F401

from ._switch import disable, enable, enabled, is_enabled, trained_adapters

__all__ = ["disable", "enable", "enabled", "is_enabled", "trained_adapters"]

"""jNO's own `net.lora(...)` with the dispatcher, registry and plugins of `jno.lora`.

    import jno

    net = jno.nn.wrap(model)
    net.freeze().lora(rank=4, wrapper="dora").optimizer(optax.adam(1e-3))

If jNO is installed, importing jNO or `jno.lora` enables this. With the environment variable
`JNO_LORA_JNO=0`, jNO keeps its own adapters.
"""

# This import comes first because, inside jNO, it enables the plugin, which needs the modules below.
import jno.lora  # noqa: F401

from ._switch import disable, enable, enabled, is_enabled, trained_adapters

__all__ = ["disable", "enable", "enabled", "is_enabled", "trained_adapters"]

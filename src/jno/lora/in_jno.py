"""jNO's own `net.lora(...)` with these adapters: the door to `jno_lora_jno`."""

from ._errors import imported_for

with imported_for("jno.lora.in_jno", "jno", "jno_lora_jno"):
    from jno_lora_jno import disable, enable, enabled, is_enabled, trained_adapters

__all__ = ["disable", "enable", "enabled", "is_enabled", "trained_adapters"]

"""jNO's own `net.lora(...)` with these adapters, imported from `jno_lora_jno`."""

from ._errors import imported_for

with imported_for("jno.lora.in_jno", "jno", "jno_lora_jno"):
    from jno_lora_jno import *  # pyright: ignore[reportWildcardImportFromLibrary]
    from jno_lora_jno import __all__ as __all__

"""Adapters of Hugging Face PEFT, read and written: the door to `jno_lora_peft`."""

from ._errors import imported_for

with imported_for("jno.lora.peft", "peft", "jno_lora_peft", "jno_lora_zoo"):
    from jno_lora_peft import (
        Untied,
        inspect_peft,
        load_lora_state,
        load_peft,
        lora_state,
        save_peft,
        untie,
    )

__all__ = [
    "Untied",
    "inspect_peft",
    "load_lora_state",
    "load_peft",
    "lora_state",
    "save_peft",
    "untie",
]

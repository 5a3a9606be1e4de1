"""Read and write adapters of Hugging Face PEFT: imported from `jno_lora_peft`."""

from ._errors import imported_for

with imported_for("jno.lora.peft", "peft", "jno_lora_peft", "jno_lora_zoo"):
    from jno_lora_peft import *  # pyright: ignore[reportWildcardImportFromLibrary]
    from jno_lora_peft import __all__ as __all__

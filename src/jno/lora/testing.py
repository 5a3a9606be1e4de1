"""The conformance kit for authors of adapters, imported from `jno_lora_testing`."""

from ._errors import imported_for

with imported_for("jno.lora.testing", "testing", "jno_lora_testing"):
    from jno_lora_testing import *  # pyright: ignore[reportWildcardImportFromLibrary]
    from jno_lora_testing import __all__ as __all__

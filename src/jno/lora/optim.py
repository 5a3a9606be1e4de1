"""Optimisers for adapters, imported from `jno_lora_train.optim`."""

from ._errors import imported_for

with imported_for("jno.lora.optim", "optim", "jno_lora_train", "optax"):
    from jno_lora_train.optim import *  # pyright: ignore[reportWildcardImportFromLibrary]
    from jno_lora_train.optim import __all__ as __all__

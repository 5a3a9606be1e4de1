"""Read adapters from files of Hugging Face PEFT, and write adapters for PEFT.

from jno_lora_peft import load_peft, save_peft

model = load_peft(model, "adapter/", rename={"^model/": ""})
save_peft(model, "adapter/")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .files import write_together
    from .inspecting import inspect_peft
    from .loading import load_peft
    from .saving import save_peft
    from .ties import Untied, untie

__all__ = ["Untied", "inspect_peft", "load_peft", "save_peft", "untie", "write_together"]

_MODULES = {
    "inspect_peft": "inspecting",
    "load_peft": "loading",
    "save_peft": "saving",
    "Untied": "ties",
    "untie": "ties",
    "write_together": "files",
}


def __getattr__(name: str) -> object:
    """Imports a function when it is used: `python -m jno_lora_peft.proof` runs without JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)

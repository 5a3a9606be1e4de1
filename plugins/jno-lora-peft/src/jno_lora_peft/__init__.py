"""Read adapters from files of Hugging Face PEFT, and write adapters for PEFT.

from jno_lora_peft import load_peft, save_peft

model = load_peft(model, "adapter/", rename={"^model/": ""})
save_peft(model, "adapter/")
"""

from .extracting import extract_peft
from .files import write_together
from .inspecting import inspect_peft
from .loading import load_peft
from .saving import save_peft
from .states.converting import Conversion, convert_lora
from .states.loading import load_lora_state
from .states.writing import lora_state
from .ties import Untied, untie

__all__ = [
    "Conversion",
    "Untied",
    "convert_lora",
    "extract_peft",
    "inspect_peft",
    "load_lora_state",
    "load_peft",
    "lora_state",
    "save_peft",
    "untie",
    "write_together",
]

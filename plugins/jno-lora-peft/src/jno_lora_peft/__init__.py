"""Read adapters from files of Hugging Face PEFT, and write adapters for PEFT.

from jno_lora_peft import load_peft, save_peft

model = load_peft(model, "adapter/", rename={"^model/": ""})
save_peft(model, "adapter/")
"""

from .files import write_together
from .inspecting import inspect_peft
from .loading import load_peft
from .saving import save_peft
from .ties import Untied, untie

__all__ = ["Untied", "inspect_peft", "load_peft", "save_peft", "untie", "write_together"]

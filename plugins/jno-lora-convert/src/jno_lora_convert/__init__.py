"""Convert LoRA of other projects: read their files and states, write them, and merge.

from jno_lora_convert import convert_lora, load_lora_state

convert_lora("checkpoint/", "adapter/", to="peft", alpha=16)
model = load_lora_state(model, "lora.safetensors", prefix="unet.")
"""

from ._convert import Conversion, convert_lora
from ._extract import extract_peft
from ._load_state import load_lora_state
from ._write_state import lora_state

__all__ = ["Conversion", "convert_lora", "extract_peft", "load_lora_state", "lora_state"]

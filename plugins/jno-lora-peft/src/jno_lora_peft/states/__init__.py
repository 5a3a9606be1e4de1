"""LoRA in the states of Qwix, Tunix and MaxText, and in the files of diffusers and kohya."""

from ._loading import load_lora_state as load_lora_state
from ._writing import lora_state as lora_state

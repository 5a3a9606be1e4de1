"""The names of the zoo, known without importing it. No third party can take one over."""

import re

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = "jno_lora_zoo"
# Written by `python tests/zoo/listings.py --write`, from the methods of the zoo.
_METHODS = """
LoRA LoHa IA3 IA3In IA3Out AdaLoRA OFT LoRAFA LoKr VeRA VeRAShared BOFT TiedLoRA rsLoRA DoRA PiSSA
FourierFT VBLoRA HRA LoRAXS OLoRA CorDA MiLoRA SHiRA LoRAGA C3A RoAd MiSS EVA RandLoRA LoRAOne
DeLoRA PSOFT WaveFT GraLoRA OFTIn DEFT TinyLoRA SuperTuning HiRA
"""
_LAYERS = """
Linear Conv ConvTranspose InNorm
"""
ZOO_METHODS = tuple(_METHODS.split())
ZOO_NAMES = tuple(f"{method}{layer}" for layer in _LAYERS.split() for method in ZOO_METHODS)


def squash(name: str) -> str:
    """A variant as it is compared, without case, dashes and underscores: "LoRA-FA" is "lora_fa"."""
    return re.sub(r"[-_ ]", "", name).lower()


# `net.lora(rank=4)` uses these, in this order, whatever is installed.
DEFAULT_NAMES = ("LoRALinear", "LoRAConv")

# Distributions of this project. They load first, and their names go before those of others.
_OURS = "zoo embedding attention recurrent foundax arrays peft compare bank quantized"
FIRST_PARTY = tuple(f"jno-lora-{name}" for name in _OURS.split())

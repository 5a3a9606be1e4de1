"""The names of the zoo, known without importing it. No third party can take one over."""

import re

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = "jno_lora_zoo"
# Written by `python tests/zoo/listings.py --write`, from the methods of the zoo.
ZOO_METHODS = (
    "LoRA",
    "IA3",
    "OFT",
    "LoRAFA",
    "LoKr",
    "VeRA",
    "rsLoRA",
    "DoRA",
    "PiSSA",
    "LoRAXS",
    "MiLoRA",
)
ZOO_LAYERS = (
    "Linear",
    "Conv",
    "ConvTranspose",
    "InNorm",
)
ZOO_NAMES = tuple(f"{method}{layer}" for layer in ZOO_LAYERS for method in ZOO_METHODS)


def squash(name: str) -> str:
    """A variant as it is compared, without case, dashes and underscores: "LoRA-FA" is "lora_fa"."""
    return re.sub(r"[-_ ]", "", name).lower()


# `net.lora(rank=4)` uses these, in this order, whatever is installed.
DEFAULT_NAMES = ("LoRALinear", "LoRAConv")

# Distributions of this project. They load first, and their names go before those of others.
FIRST_PARTY = (
    ZOO_DISTRIBUTION,
    "jno-lora-embedding",
    "jno-lora-attention",
    "jno-lora-recurrent",
    "jno-lora-foundax",
    "jno-lora-peft",
    "jno-lora-compare",
)

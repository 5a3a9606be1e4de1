"""The distributions of this project. Their plugins load first, so no third party takes a name."""

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = "jno_lora_zoo"

FIRST_PARTY = tuple(
    f"jno-lora-{name}"
    for name in (
        *("arrays", "attention", "bank", "compare", "embedding", "foundax"),
        *("peft", "quantized", "recurrent", "train", "zoo"),
    )
)

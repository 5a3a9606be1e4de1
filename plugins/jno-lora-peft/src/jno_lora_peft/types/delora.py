"""DeLoRA: an update of normalised components with a trained strength."""

from ._same_arrays import SameArrays, Tensor
from ._type import R_PATTERN, Type

_ARRAYS = SameArrays(
    "delora",
    {
        "lora_A": Tensor("delora_A", "r in"),
        "lora_B": Tensor("delora_B", "out r"),
        "strength": Tensor("delora_lambda", "1 ->"),
        "norms": Tensor("delora_w_norm", "in"),
    },
    alpha=1.0,
)
DELORA = Type(
    "DELORA",
    held="DeLoRA",
    tensors="delora_(?:A|B|lambda|w_norm)",
    reader=_ARRAYS.read,
    writer=_ARRAYS.write,
    methods=("delora",),
    layers=("linear",),
    rank=R_PATTERN,
    settings="delora_lambda lambda_pattern",
    bias="delora_only",
)

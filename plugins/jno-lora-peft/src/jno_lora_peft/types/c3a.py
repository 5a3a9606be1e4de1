"""C3A: circular convolutions of blocks."""

from ._same_arrays import SameArrays, Tensor
from ._type import Setting, Type

_ARRAYS = SameArrays("c3a", {"kernel": Tensor("c3a_kernel", "p q r")}, alpha=1.0)
C3A = Type(
    "C3A",
    held="C3A",
    tensors="c3a_kernel",
    reader=_ARRAYS.read,
    writer=_ARRAYS.write,
    methods=("c3a",),
    layers=("linear",),
    rank=Setting("block_size", 256, "block_size_pattern", by_name=True),
    bias="c3a_only",
)

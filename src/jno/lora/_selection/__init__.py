"""What the arguments of `lora` select: wrappers, targets, specs and masks, parsed and checked."""

from ._masks import Mask, MaskLike, parse_mask
from ._specs import Spec, SpecLike, Tiers, WrapperLike, parse_specs

__all__ = [
    "Mask",
    "MaskLike",
    "Spec",
    "SpecLike",
    "Tiers",
    "WrapperLike",
    "parse_mask",
    "parse_specs",
]

"""What a call selects: its arguments parsed, one walk over the model, and the plan that results."""

from ._masks import Mask, MaskLike, parse_mask
from ._messages import (
    check_every_spec_matched,
    warn_of_clamped_ranks,
    warn_of_what_was_left_out,
)
from ._plan import Plan, PlanRow
from ._specs import Spec, SpecLike, Tiers, WrapperLike, parse_specs, parse_wrapper
from ._walk import Walk

__all__ = [
    "Mask",
    "MaskLike",
    "Plan",
    "PlanRow",
    "Spec",
    "SpecLike",
    "Tiers",
    "Walk",
    "WrapperLike",
    "check_every_spec_matched",
    "parse_mask",
    "parse_specs",
    "parse_wrapper",
    "warn_of_clamped_ranks",
    "warn_of_what_was_left_out",
]

"""The contract of an adapter, and what every operation checks of its arguments."""

from ._arguments import check_key, check_number, check_part, check_rank, is_whole
from ._handle import (
    Handle,
    Loose,
    evaluated,
    expect_model,
    is_traced,
    why,
    without_values,
)
from ._problems import check_contract, contract_problems
from ._protocols import ConvLike, LinearLike
from ._same_structure import check_same_form
from ._stacking import keys_for_stack, over_stack
from ._wrapper import LoRAWrapper, is_wrapper, merged_layer, unwrapped_layer

__all__ = [
    "ConvLike",
    "Handle",
    "LinearLike",
    "LoRAWrapper",
    "Loose",
    "check_contract",
    "check_key",
    "check_number",
    "check_part",
    "check_rank",
    "check_same_form",
    "contract_problems",
    "evaluated",
    "expect_model",
    "is_traced",
    "is_whole",
    "is_wrapper",
    "keys_for_stack",
    "merged_layer",
    "over_stack",
    "unwrapped_layer",
    "why",
    "without_values",
]

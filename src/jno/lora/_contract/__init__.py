"""The contract of an adapter, and what every operation checks of its arguments."""

from ._arguments import check_key, check_number, check_part, check_rank, is_whole
from ._constructing import construct, option_names, takes
from ._handle import Handle, Loose, expect_model
from ._problems import check_contract, contract_problems
from ._protocols import ConvLike, LinearLike
from ._same_structure import check_same_structure
from ._stacking import keys_for_stack, over_stack
from ._templates import call_or_trace, is_traced, refusal_of_template
from ._wrapper import LoRAWrapper, is_wrapper, merged_layer, unwrapped_layer

__all__ = [
    "ConvLike",
    "Handle",
    "LinearLike",
    "LoRAWrapper",
    "Loose",
    "call_or_trace",
    "check_contract",
    "check_key",
    "check_number",
    "check_part",
    "check_rank",
    "check_same_structure",
    "construct",
    "contract_problems",
    "expect_model",
    "is_traced",
    "is_whole",
    "is_wrapper",
    "keys_for_stack",
    "merged_layer",
    "option_names",
    "over_stack",
    "refusal_of_template",
    "takes",
    "unwrapped_layer",
]

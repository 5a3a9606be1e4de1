"""The contract of an adapter, and checks of arguments."""

from ._calling import call_or_trace, is_traced, keys_for_stack, over_stack, refusal_of_template
from ._checks import (
    NotAModel,
    NotAPytree,
    check_adapter_name,
    check_key,
    check_number,
    check_rank,
    check_same_structure,
    expect_model,
)
from ._coded import (
    CodedArray,
    class_of,
    coded_size,
    is_coded,
    refuse_coded,
    row_products,
    with_arrays,
)
from ._composite import Composite, Member, registered_class
from ._constructing import construct, option_names, takes
from ._matrix_adapter import LowRankForm, MatrixAdapter, Term, adds_up
from ._problems import check_contract, contract_problems
from ._protocols import ConvLike, LinearLike
from ._reading import merged_layer, weights_read_by
from ._shared import Box, Shared, array_in, authors_of, is_shared, replaced, shared_fields
from ._statistics import (
    Statistic,
    mean_shape,
    statistic_key,
    statistic_keys,
    statistics_of,
    zero_statistics,
)
from ._variants import RESERVED_WORDS, normalise_word
from ._wrapper import About, LoRAWrapper, is_adapter, trainable_fields, unwrapped_layer

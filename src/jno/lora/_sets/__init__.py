"""Sets of adapters without their model: extract, swap, combine, stack and convert them."""

from ._adapter_set import AdapterSet, LayerForm, LooseAdapter, arrays_of, extract_adapters
from ._combine import combine, combine_with_report
from ._convert import to_lora
from ._products import Triplets, known_factors, scale_adapters
from ._shrink import shrink
from ._stacking import stack_adapters, take_adapters
from ._sum import (
    AdapterSum,
    Member,
    Weights,
    problems_of_members,
    sets_in,
    split_adapters,
    state_of,
    sum_adapters,
    sum_class,
)
from ._swapping import (
    built_around,
    check_fit,
    misfits,
    put_around,
    settings_of,
    shared_by_others,
    swap_adapters,
    with_settings,
)
from ._update_report import UpdateReport, UpdateRow

"""Sets of adapters without their model: extract them, swap them, and add them up in a model."""

from ._adapter_set import AdapterSet, LayerForm, LooseAdapter, arrays_of, extract_adapters
from ._adapter_sum import AdapterSum, Member, sum_class
from ._products import Factors, known_factors, widest
from ._summing import Weights, sets_in, split_adapters, sum_adapters
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

"""Sets of adapters without their model: extract them, swap them, and add them up in a model."""

from ._adapter_set import AdapterSet, LayerForm, LooseAdapter, arrays_of, extract_adapters
from ._products import Factors, known_factors, widest
from ._sum import (
    AdapterSum,
    Member,
    Weights,
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

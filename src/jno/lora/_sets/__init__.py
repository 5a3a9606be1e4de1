"""Sets of adapters without their model: extract them, swap them, and add them up in a model."""

from ._products import Factors, known_factors, widest
from ._set import (
    AdapterSet,
    LayerForm,
    LooseAdapter,
    arrays_of,
    built_around,
    check_fit,
    check_shared,
    extract_adapters,
    misfits,
    put_around,
    settings_of,
    swap_adapters,
    with_settings,
)
from ._sum import AdapterSum, Member, Weights, sets_in, split_adapters, sum_adapters, sum_class

"""Sets of adapters without their model: extract them, and swap them."""

from ._members import (
    NamedSet,
    NamedSets,
    Proofs,
    SeveralAdapters,
    Sums,
    Trains,
    Weights,
    members_of,
)
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

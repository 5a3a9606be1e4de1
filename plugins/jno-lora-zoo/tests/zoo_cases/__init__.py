"""Shared parts of the zoo's tests: base layers, the laws in NumPy, and small tools."""

from .adapters import (
    ADAPTERS,
    METHODS,
    Adapter,
    adapters,
    build,
    each,
    everywhere,
    law_of,
    made,
    on_cases,
    pairs,
    perturb,
)
from .laws import ALL_METHODS, EFFECTIVE_RANK, LATER, fields_of, parameter_count, reference
from .laws_from_data import given_to
from .laws_shared import OPTIONS
from .layers import CONVS, LINEARS, Case, case
from .tools import (
    assert_close,
    cast_floats,
    central_difference,
    check_kind,
    equal_leaves,
    shapes_in_jaxpr,
)

__all__ = [
    "ADAPTERS",
    "ALL_METHODS",
    "CONVS",
    "EFFECTIVE_RANK",
    "LATER",
    "LINEARS",
    "METHODS",
    "OPTIONS",
    "Adapter",
    "Case",
    "adapters",
    "assert_close",
    "build",
    "case",
    "cast_floats",
    "central_difference",
    "check_kind",
    "each",
    "equal_leaves",
    "everywhere",
    "fields_of",
    "given_to",
    "law_of",
    "made",
    "on_cases",
    "pairs",
    "parameter_count",
    "perturb",
    "reference",
    "shapes_in_jaxpr",
]

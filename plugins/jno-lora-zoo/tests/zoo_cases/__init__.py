"""What the tests of the zoo share: base layers, the laws in NumPy, and small tools."""

from .adapters import ADAPTERS, METHODS, Adapter, adapters, build, everywhere, law_of, perturb
from .laws import EFFECTIVE_RANK, PARAMETER_COUNT, fields_of, reference
from .layers import CONVS, LINEARS, Case, case
from .tools import assert_close, cast_floats, equal_leaves, shapes_in_jaxpr

__all__ = [
    "ADAPTERS",
    "CONVS",
    "EFFECTIVE_RANK",
    "LINEARS",
    "METHODS",
    "PARAMETER_COUNT",
    "Adapter",
    "Case",
    "adapters",
    "assert_close",
    "build",
    "case",
    "cast_floats",
    "equal_leaves",
    "everywhere",
    "fields_of",
    "law_of",
    "perturb",
    "reference",
    "shapes_in_jaxpr",
]

"""Arithmetic on layers: in which dtypes, and by compiled programs that alike layers share."""

from ._calls import Calls
from ._precision import at_least_float32, count_non_finite, held_dtype, in_dtypes_of, widened
from ._program import call_compiled
from ._signature import beside, form_of

__all__ = [
    "Calls",
    "at_least_float32",
    "beside",
    "call_compiled",
    "count_non_finite",
    "form_of",
    "held_dtype",
    "in_dtypes_of",
    "widened",
]

"""Arithmetic on layers: its dtypes, and compiled programs that similar layers share."""

from ._elimination import gauss_jordan
from ._jaxprs import equations_in, jaxprs_in
from ._precision import (
    at_least_float32,
    compute_dtype,
    count_non_finite,
    count_reals,
    held_dtype,
    in_dtypes_of,
    widened,
    widest,
)
from ._program import Started, call_compiled, start_compiled
from ._signature import TracedError, signature_of, static_key

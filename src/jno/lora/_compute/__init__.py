"""Arithmetic on layers: its dtypes, and decompositions that cannot hang."""

from ._elimination import gauss_jordan
from ._jaxprs import equations_in, jaxprs_in
from ._lapack import decomposes, run_decomposition
from ._precision import (
    at_least_float32,
    compute_dtype,
    count_non_finite,
    count_reals,
    held_dtype,
    in_dtypes_of,
    is_finite,
    widened,
    widest,
)

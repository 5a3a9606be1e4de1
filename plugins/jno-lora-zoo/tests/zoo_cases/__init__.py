"""Shared parts of the zoo's tests: base layers, the laws in NumPy, and small tools.

Each method has its law in NumPy (`laws*.py`), which `test_oracles.py` holds against everything that
an adapter computes, in double precision: the start, the output, the merged weight and every single
derivative. The conformance kit (`test_conformance.py`) checks what does not depend on the law. Both
run on pairs of a method and a layer (`tests/pairs.py`). All other files test what these two do not
see: starts, options, precision, memory, refusals.
"""

# ruff: noqa: F401
# The laws register themselves when they are imported.
from . import laws_from_data, laws_shared, laws_sparse, laws_structured, laws_turned
from .adapters import (
    ALL_METHODS,
    LAW_WAYS,
    WAYS,
    WHOLE_KIT,
    Adapter,
    adapters,
    build,
    dealt,
    law_of,
    made,
    on_cases,
    pairs,
    perturb,
)
from .laws import effective_rank, fields_of, parameter_count, reference
from .laws_from_data import given_to
from .laws_shared import OPTIONS
from .layers import Case, case
from .tools import (
    OF_THE_KIND,
    assert_close,
    cast_floats,
    central_difference,
    check_kind,
    equal_leaves,
    shapes_in_jaxpr,
)

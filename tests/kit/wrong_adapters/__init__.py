"""Wrong adapters as data: each has one fault, and names the check that must notice the fault.

`python -m tests.kit.wrong_adapters` prints which share the kit notices.
"""

from . import (  # noqa: F401
    applying,
    claims,
    inputs,
    layers,
    maths,
    merging,
    options,
    precision,
    purity,
    starts,
    states,
    symmetries,
    training,
    transformations,
)
from ._rows import TABLE as TABLE

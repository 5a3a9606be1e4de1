"""Check options of constructors that must be certain numbers."""

import math
from typing import Any

import numpy as np


def whole_number(value: Any, option: str, most: int | None = None, why: str = "") -> int:
    """`value` as an `int`.

    **Raises:** `ValueError` that names the `option`, unless `value` is a whole number from 1 to
    `most`. `why` explains in the message where this limit comes from.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_whole and value >= 1 and (most is None or value <= most):
        return int(value)
    wanted = "of 1 or more" if most is None else f"from 1 to {most}"
    raise ValueError(f"`{option}` must be a whole number {wanted}{why}, but is {value!r}")


def positive_number(value: Any, option: str) -> float:
    """`value` as a `float`. **Raises:** `ValueError` that names the `option`, unless positive."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"`{option}` must be a positive number, but is {value!r}")

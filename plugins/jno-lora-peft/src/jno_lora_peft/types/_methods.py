"""The methods of the zoo that hold adapters of PEFT."""

import math
from typing import Any

from jno_lora_zoo import METHODS as _METHODS

# The methods, by variant.
METHODS: dict[str, Any] = {str(method.variant): method for method in _METHODS}


def alpha_for(variant: str, rank: int, scale: float, given: float) -> float:
    """The alpha that makes this scale of an update: the given alpha if it does, up to rounding."""
    alpha = scale / METHODS[variant].scale_for(rank, 1.0)
    return float(given) if math.isclose(alpha, given) else alpha

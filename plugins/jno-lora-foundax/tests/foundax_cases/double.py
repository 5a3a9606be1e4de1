"""Casts and comparisons in double precision."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# The step of a central difference. Its errors are h^2 by the third derivative, and the rounding of
# the values over h: both are about 1e-10 of the values at this one.
H = 1e-5


def doubled(tree: Any) -> Any:
    """The tree with every floating array in float64, where that is enabled."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree)


def central_difference(function: Callable[[np.ndarray], Any], array: np.ndarray) -> np.ndarray:
    """The derivative of a number by every entry of `array`."""
    derivative = np.empty(array.shape)
    for place in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[place] += H
        down[place] -= H
        derivative[place] = (function(up) - function(down)) / (2 * H)
    return derivative


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """The largest error is at most `tolerance` times the largest expected number."""
    actual, expected = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.max(np.abs(actual - expected))
    bound = tolerance * np.max(np.abs(expected))
    assert error <= bound, f"error {error:.3g} > bound {bound:.3g}"

"""Functions that compare arrays and trees, and raise if a check's requirement fails."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._conformance import ConformanceError


def require(condition: object, problem: str, remedy: str = "") -> None:
    """**Raises:** `ConformanceError` unless `condition` holds."""
    if not condition:
        raise ConformanceError(problem, remedy)


def require_close(
    actual: PyTree, expected: PyTree, bound: float, problem: str, least: float = 1e-3
) -> None:
    """**Raises:** `ConformanceError` if the `relative_error` is larger than `bound`."""
    error = relative_error(actual, expected, least)
    require(error <= bound, f"{problem}: relative error {error:.1e}, allowed {bound:.1e}.")


def relative_error(actual: PyTree, expected: PyTree, least: float = 1e-3) -> float:
    """The largest error of an array, relative to its largest expected number, or to `least`.

    Without `least`, the rounding of numbers near zero would look like a large error.
    """
    actual_leaves, expected_leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if [jnp.shape(a) for a in actual_leaves] != [jnp.shape(e) for e in expected_leaves]:
        return float("inf")
    worst = 0.0
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        a, e = np.asarray(a, np.complex128), np.asarray(e, np.complex128)
        if a.size:
            error = np.max(np.abs(a - e)) / max(float(np.max(np.abs(e))), least)
            worst = max(worst, float(error)) if np.isfinite(error) else float("inf")
    return worst


def is_finite(tree: PyTree) -> bool:
    """Whether all floating arrays of a tree are finite."""
    return all(np.all(np.isfinite(x)) for x in arrays_of(tree) if eqx.is_inexact_array(x))


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether the arrays of two trees agree in shape, dtype and every bit."""

    def content(tree: PyTree) -> list[tuple[object, ...]]:
        arrays = (jax.random.key_data(x) if is_key(x) else x for x in arrays_of(tree))
        return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in arrays]

    return content(a) == content(b)


def arrays_of(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]


def is_key(array: Array | np.ndarray) -> bool:
    """Whether the argument is a typed PRNG key."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))

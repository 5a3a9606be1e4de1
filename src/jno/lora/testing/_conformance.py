"""The two levels of checks, the error of a check, and the comparisons that checks share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# The checks by their ids, and the ids of those whose failure is advice.
CHECKS: dict[str, Callable[[Any], str | None]] = {}
ADVICE: set[str] = set()


def required(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """A check of a promise: without it a use that is documented goes wrong, or nothing trains."""
    CHECKS[_id(check)] = check
    return check


def advice(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """A check of a quality: without it the adapter works for fewer layers, or less precisely."""
    ADVICE.add(_id(check))
    return required(check)


def _id(check: Callable[..., Any]) -> str:
    return check.__name__.removeprefix("check_").replace("_", "-")


class ConformanceError(AssertionError):
    """An adapter fails a check. The message says which, what came, and what to do."""


def require(condition: Any, problem: str, remedy: str) -> None:
    """**Raises:** `ConformanceError` unless `condition` holds."""
    if not condition:
        raise ConformanceError(f"{problem}\nWhat to do: {remedy}")


def require_close(
    actual: PyTree, expected: PyTree, bound: float, problem: str, remedy: str
) -> None:
    """**Raises:** `ConformanceError` if the relative error is larger than `bound`."""
    error = relative_error(actual, expected)
    require(error <= bound, f"{problem}: relative error {error:.1e}, allowed {bound:.1e}.", remedy)


def relative_error(actual: PyTree, expected: PyTree) -> float:
    """The largest difference between two outputs, relative to the largest expected number."""
    actual_leaves, expected_leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if [jnp.shape(a) for a in actual_leaves] != [jnp.shape(e) for e in expected_leaves]:
        return float("inf")
    worst = 0.0
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(e) else np.float64
        a, e = np.asarray(a, wide), np.asarray(e, wide)
        if a.size:
            error = np.max(np.abs(a - e)) / max(float(np.max(np.abs(e))), 1e-3)
            worst = max(worst, float(error)) if np.isfinite(error) else float("inf")
    return worst


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether the arrays of two trees agree in shape, dtype and every bit."""

    def content(tree: PyTree) -> list[Any]:
        arrays = (leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf))
        arrays = (jax.random.key_data(x) if is_key(x) else x for x in arrays)
        return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in arrays]

    return content(a) == content(b)


def is_key(array: Any) -> bool:
    """Whether it is a typed PRNG key."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))

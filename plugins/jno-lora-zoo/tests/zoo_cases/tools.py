"""Small tools: comparisons with a stated bound, casts, and a look into a jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jno_lora_testing import WrapperCase, run_checks


def assert_close(actual: Any, expected: Any, tolerance: float, scale: float | None = None) -> None:
    """The largest error is at most `tolerance` times the largest expected number (or `scale`)."""
    actual, expected = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.max(np.abs(actual - expected), initial=0.0)
    bound = tolerance * (np.max(np.abs(expected), initial=0.0) if scale is None else scale)
    assert error <= bound, f"error {error:.3g} > bound {bound:.3g}"


# The errors, h^4 by the fifth derivative and rounding over h, are small for outputs of thousands.
_H = 1e-5


def central_difference(function: Callable[[np.ndarray], Any], array: np.ndarray) -> np.ndarray:
    """The derivative of a number by every entry of `array`, from four points for each."""
    derivative = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        for steps, weight in ((1, 8), (2, -1), (-1, -8), (-2, 1)):
            moved = array.copy()
            moved[place] += steps * _H
            derivative[place] += weight * function(moved) / (12 * _H)
    return derivative


def equal_leaves(one: Any, other: Any) -> bool:
    """Whether two trees have one structure and the same bits in every array."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def cast_floats(tree: Any, dtype: Any) -> Any:
    """The tree with every floating array in that dtype."""

    def cast(leaf: Any) -> Any:
        # Norms hold functions as well.
        floats = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floats else leaf

    return jax.tree.map(cast, tree)


def shapes_in_jaxpr(function: Any, *args: Any) -> set[tuple[int, ...]]:
    """The shapes of everything that `function` computes on the way, its arguments left out."""
    return set(_shapes(jax.make_jaxpr(function)(*args).jaxpr))


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (tuple(getattr(var.aval, "shape", ())) for var in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)


# The checks of the part that a kind of layer has in an adapter. The rest of the kit looks at the
# method, and runs on linear layers for all of them.
OF_THE_KIND = (
    "identity-at-init",
    "adapter-acts",
    "merge-equals-call",
    "unwrap-restores",
    "gradients",
    "parameter-count",
    "state-round-trip",
    "stacked-layers",
    "symmetries",
    "matrix",
    "low-rank-update",
    "calibration",
)


def check_kind(case: WrapperCase) -> None:
    """Run those checks of the kit in which the kind of layer matters."""
    for result in run_checks(case, OF_THE_KIND):
        assert result.error is None, result.error

"""The check of symmetries: trained arrays do not break what the layer keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._case import WrapperCase
from ._comparisons import relative_error, require
from ._conformance import required, skip_unless
from ._programs import merged, output
from ._symmetries import Symmetry

# Float32: the rounding of a few hundred terms, and of a rotated vector.
_TOLERANCE = 4e-5
# Elements of each group. Calls with their inputs compile nothing.
_SEEDS = (71, 72, 73)


@required(
    "let the trained arrays act in a way that commutes with the symmetry. If the method breaks the "
    "symmetry by its law, give the case `breaks=(...)` with the name, and say so in the method's "
    "documentation."
)
def check_symmetries(case: WrapperCase) -> None:
    """The layer, the trained adapter and its merged layer keep the symmetries of the case."""
    skip_unless(case.symmetries, "the case names no `symmetries`")
    base, trained = case.make_base(), case.make_trained()
    adapted = {"the trained adapter": trained}
    if case.mergeable:
        adapted["the merged layer"] = merged(trained)
    for symmetry in case.symmetries:
        bound = require_symmetric(case, base, symmetry, _TOLERANCE)
        broken = [_broken(case, layer, symmetry, bound, what) for what, layer in adapted.items()]
        if symmetry.name in case.breaks:
            require(
                any(broken),
                f"The case declares that the adapter breaks the symmetry {symmetry.name!r}, but "
                "it keeps the symmetry.",
                f"remove {symmetry.name!r} from `breaks`.",
            )
            continue
        for problem in broken:
            require(not problem, problem)


def require_symmetric(
    case: WrapperCase, base: Any, symmetry: Symmetry, tolerance: float, dtype: Any = None
) -> float:
    """The error that an adapter of `base` may have.

    **Raises:** `ConformanceError` if `base` lacks the symmetry, or no element moves the inputs.
    """
    inputs = case.make_inputs(dtype)
    moves = [
        relative_error(symmetry.on_inputs(element, *inputs), inputs) > tolerance
        for element in _elements(symmetry)
    ]
    require(
        any(moves),
        f"No drawn element of the symmetry {symmetry.name!r} moves the inputs.",
        "correct the case: let `draw` give elements other than the identity.",
    )
    error, element = error_of(case, base, symmetry, dtype)
    require(
        error <= tolerance,
        f"The layer itself, without an adapter, lacks the symmetry {symmetry.name!r}: for "
        f"{_shown(element)}, relative error {error:.1e}, allowed {tolerance:.1e}.",
        "correct the case: its `base` or `inputs` (a convolution needs circular padding for cyclic "
        "shifts), or `on_inputs` and `on_output` of the symmetry.",
    )
    return tolerance + 10 * error


def _broken(case: WrapperCase, layer: Any, symmetry: Symmetry, bound: float, what: str) -> str:
    """The problem if `layer` lacks the symmetry, or an empty text."""
    error, element = error_of(case, layer, symmetry)
    if error <= bound:
        return ""
    return (
        f"The layer has the symmetry {symmetry.name!r}, and {what} breaks it: for "
        f"{_shown(element)}, relative error {error:.1e}, allowed {bound:.1e}."
    )


def error_of(
    case: WrapperCase, layer: Any, symmetry: Symmetry, dtype: Any = None
) -> tuple[float, Any]:
    """The largest relative error of the symmetry over the drawn elements, and its element."""
    inputs = case.make_inputs(dtype)
    plain = output(case, layer, inputs)
    errors: list[tuple[float, Any]] = []
    for element in _elements(symmetry):
        moved = output(case, layer, symmetry.on_inputs(element, *inputs))
        errors.append((relative_error(moved, symmetry.on_output(element, plain)), element))
    return max(errors, key=lambda pair: pair[0])


def _elements(symmetry: Symmetry) -> list[Any]:
    return [symmetry.draw(jax.random.key(seed)) for seed in _SEEDS]


def _shown(element: Any) -> str:
    """The element as a short text."""
    if isinstance(element, np.ndarray | jnp.ndarray):
        return np.array2string(np.asarray(element), precision=3, threshold=20)
    text = f"{element}"
    return text if len(text) <= 200 else f"{text[:197]}..."

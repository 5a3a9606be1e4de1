"""The check of symmetries: a trained adapter keeps the symmetries of its layer."""

from collections.abc import Mapping

import jax
from jaxtyping import PyTree

from ._case import WrapperCase
from ._comparisons import relative_error, require, same_bits
from ._conformance import required, skip_unless
from ._programs import merged, output
from ._symmetries import Inputs, Symmetry

# Float32: the rounding of a few hundred terms and of the moved inputs.
_TOLERANCE = 4e-5
# Float64: a layer whose symmetry is only exact in float32 would hide breaks up to 1e-6.
_LAYER_IN_FLOAT64 = 1e-9
# Elements to draw. Moved inputs keep their shapes, so calls on them compile nothing.
_SEEDS = (71, 72, 73)


@required(
    "make the update commute with the symmetry. If the law of the method breaks it, list the "
    "symmetry in the case's `breaks`, and document it."
)
def check_symmetries(case: WrapperCase) -> None:
    """The trained adapter and its merged layer keep the symmetries that the case lists."""
    skip_unless(case.symmetries, "the case names no `symmetries`")
    base, trained, inputs = case.make_base(), case.make_trained(), case.make_inputs()
    adapted = {"the trained adapter": trained}
    if case.mergeable:
        adapted["the merged layer"] = merged(trained)
    for symmetry in case.symmetries:
        moved = [symmetry.on_inputs(element, *inputs) for element in _elements(symmetry)]
        require(
            not all(same_bits(inputs, arguments) for arguments in moved),
            f"No drawn element of the symmetry {symmetry.name!r} moves the inputs.",
            "correct the case: let `draw` give elements other than the identity, and let the "
            "inputs be numbers that differ from each other.",
        )
        error, element = _largest_error(case, base, symmetry, inputs)
        require(
            error <= _TOLERANCE,
            f"The layer itself, without an adapter, lacks the symmetry {symmetry.name!r}: for "
            f"{element}, relative error {error:.1e}, allowed {_TOLERANCE:.1e}.",
            "correct the case: its `base` or `inputs` (a convolution needs circular padding for "
            "cyclic shifts), or `on_inputs` and `on_output` of the symmetry.",
        )
        problem = _problem(case, adapted, symmetry, inputs, _TOLERANCE + 10 * error)
        if symmetry.name not in case.breaks:
            require(not problem, problem)
            continue
        require(
            problem,
            f"The case declares that the adapter breaks the symmetry {symmetry.name!r}, but the "
            "trained adapter keeps this symmetry.",
            f"remove {symmetry.name!r} from `breaks`.",
        )


def require_symmetries(
    case: WrapperCase,
    base: PyTree,
    adapted: Mapping[str, PyTree],
    inputs: Inputs,
    tolerance: float,
) -> None:
    """Check the symmetries in float64, as precisely as the layer itself has them.

    A layer that partly computes in float32 has its symmetries up to float32 rounding, which
    `check_symmetries` allows.

    **Raises:** `ConformanceError` if an adapted layer breaks a symmetry that it should keep.
    """
    for symmetry in case.symmetries:
        if symmetry.name in case.breaks:
            continue
        error, _ = _largest_error(case, base, symmetry, inputs)
        if error > _LAYER_IN_FLOAT64:
            continue
        problem = _problem(case, adapted, symmetry, inputs, tolerance + 10 * error)
        require(not problem, problem)


def _problem(
    case: WrapperCase,
    adapted: Mapping[str, PyTree],
    symmetry: Symmetry,
    inputs: Inputs,
    bound: float,
) -> str:
    """How an adapted layer breaks the symmetry, or an empty text."""
    for what, layer in adapted.items():
        error, element = _largest_error(case, layer, symmetry, inputs)
        if error > bound:
            return (
                f"The layer has the symmetry {symmetry.name!r}, and {what} breaks it: for "
                f"{element}, relative error {error:.1e}, allowed {bound:.1e}."
            )
    return ""


def _largest_error(
    case: WrapperCase, layer: PyTree, symmetry: Symmetry, inputs: Inputs
) -> tuple[float, object]:
    """The largest relative error over the drawn elements, and its element."""
    plain = output(case, layer, inputs)
    errors: list[tuple[float, object]] = []
    for element in _elements(symmetry):
        moved = output(case, layer, symmetry.on_inputs(element, *inputs))
        errors.append((relative_error(moved, symmetry.on_output(element, plain)), element))
    return max(errors, key=lambda pair: pair[0])


def _elements(symmetry: Symmetry) -> list[object]:
    return [symmetry.draw(jax.random.key(seed)) for seed in _SEEDS]

"""The check of symmetries: a trained adapter keeps the symmetries of its layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._case import WrapperCase
from ._comparisons import relative_error, require, same_bits
from ._conformance import required, skip_unless
from ._programs import merged, output
from ._symmetries import Symmetry

# Float32: the rounding of a few hundred terms, and of moved inputs.
_TOLERANCE = 4e-5
# Float64: a layer that has a symmetry by float32 numbers alone would hide breaks up to 1e-6.
_LAYER_IN_FLOAT64 = 1e-9
# Each draws an element. Moved inputs have the shapes of the inputs: their calls compile nothing.
_SEEDS = (71, 72, 73)


@required(
    "let the trained arrays act in a way that commutes with the symmetry. If the method breaks the "
    "symmetry by its law, declare this: give the case `breaks`, with the name of the symmetry, and "
    "say so in the method's documentation."
)
def check_symmetries(case: WrapperCase) -> None:
    """The trained adapter and its merged layer keep the symmetries that the case names."""
    skip_unless(case.symmetries, "the case names no `symmetries`")
    base, trained, inputs = case.make_base(), case.make_trained(), case.make_inputs()
    adapted = {"the trained adapter": trained}
    if case.mergeable:
        adapted["the merged layer"] = merged(trained)
    for symmetry in case.symmetries:
        _check_moved_inputs(symmetry, inputs)
        error, element = _largest_error(case, base, symmetry, inputs)
        require(
            error <= _TOLERANCE,
            f"The layer itself, without an adapter, lacks the symmetry {symmetry.name!r}: for "
            f"{_shown(element)}, relative error {error:.1e}, allowed {_TOLERANCE:.1e}.",
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
    base: Any,
    adapted: Mapping[str, Any],
    inputs: tuple[Any, ...],
    tolerance: float,
) -> None:
    """Check the symmetries in float64, as far as the layer itself has them there.

    A layer that computes a part in float32 has its symmetries up to the rounding of float32, which
    `check_symmetries` allows.

    **Raises:** `ConformanceError` if an adapted layer breaks a symmetry that it should keep, or if
    the symmetry itself rounds to float32.
    """
    for symmetry in case.symmetries:
        if symmetry.name in case.breaks:
            continue
        error, element = _largest_error(case, base, symmetry, inputs)
        if error > _LAYER_IN_FLOAT64:
            require(
                not _rounds(symmetry, element, inputs, output(case, base, inputs)),
                f"The symmetry {symmetry.name!r} rounds float64 arrays to float32, which would "
                "hide small breaks.",
                "correct the case: let `on_inputs` and `on_output` compute in float64, and cast "
                "the result to the dtype of the array.",
            )
            continue
        problem = _problem(case, adapted, symmetry, inputs, tolerance + 10 * error)
        require(not problem, problem)


def _rounds(symmetry: Symmetry, element: Any, inputs: tuple[Any, ...], y: Any) -> bool:
    """Whether the symmetry does not see a change that float64 sees."""

    def larger(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: x * (1 + 1e-10) if jnp.result_type(x) == jnp.float64 else x, tree
        )

    moved = symmetry.on_inputs(element, *inputs), symmetry.on_output(element, y)
    changed = symmetry.on_inputs(element, *larger(inputs)), symmetry.on_output(element, larger(y))
    # A layer may return float32.
    is_wide = not same_bits(inputs, larger(inputs)), not same_bits(y, larger(y))
    return any(wide and same_bits(a, b) for wide, a, b in zip(is_wide, moved, changed, strict=True))


def _check_moved_inputs(symmetry: Symmetry, inputs: tuple[Any, ...]) -> None:
    """**Raises:** `ConformanceError` if no element moves inputs, or the form of inputs changes."""
    moves: list[bool] = []
    for element in _elements(symmetry):
        moved = symmetry.on_inputs(element, *inputs)
        expected, got = _form(inputs), _form(moved)
        require(
            got == expected,
            f"`on_inputs` of the symmetry {symmetry.name!r} should return {expected}, but returns "
            f"{got}.",
            "correct the case: `on_inputs(element, *inputs)` returns the tuple of all inputs, with "
            "their shapes and dtypes.",
        )
        moves.append(not same_bits(moved, inputs))
    require(
        any(moves),
        f"No drawn element of the symmetry {symmetry.name!r} moves the inputs.",
        "correct the case: let `draw` give elements other than the identity, and let the inputs be "
        "numbers that differ from each other.",
    )


def _form(inputs: Any) -> str:
    """The structure, shapes and dtypes of inputs, as text."""
    return f"{jax.tree.map(lambda x: f'{jnp.result_type(x)}{[*jnp.shape(x)]}', inputs)}"


def _problem(
    case: WrapperCase,
    adapted: Mapping[str, Any],
    symmetry: Symmetry,
    inputs: tuple[Any, ...],
    bound: float,
) -> str:
    """How an adapted layer breaks the symmetry, or an empty text."""
    for what, layer in adapted.items():
        error, element = _largest_error(case, layer, symmetry, inputs)
        if error > bound:
            return (
                f"The layer has the symmetry {symmetry.name!r}, and {what} breaks it: for "
                f"{_shown(element)}, relative error {error:.1e}, allowed {bound:.1e}."
            )
    return ""


def _largest_error(
    case: WrapperCase, layer: Any, symmetry: Symmetry, inputs: tuple[Any, ...]
) -> tuple[float, Any]:
    """The largest relative error over the drawn elements, and the element that has this error."""
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
    if isinstance(element, np.ndarray | jax.Array):
        return np.array2string(np.asarray(element), precision=3, threshold=20)
    text = f"{element}"
    return text if len(text) <= 200 else f"{text[:197]}..."

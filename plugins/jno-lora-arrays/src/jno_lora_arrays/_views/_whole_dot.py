"""Products with the weight of an adapter, computed by the adapter's own `forward`.

`forward` multiplies vectors of all inputs, or its transpose vectors of all outputs. So the axes of
`x` are brought into the order of such vectors, and the axes of the result out of it.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array

from ._adapted_layers import matrix_shape, times_inputs, times_outputs
from ._runs import Run, RunsView, rearranged
from ._view import Declined, Dot


def dot_by_adapter(adapter: Any, view: RunsView, dot: Dot) -> Array | Declined:
    """`dot` of a view of the adapter's weight; `Declined` if the adapter has no path for it."""
    product = _Product(
        view.runs_along(dot.weight_axes.summed),
        view.runs_along(dot.weight_axes.batch),
        view.runs_along(dot.weight_axes.free(view.ndim)),
        Run("x", 1, math.prod(dot.x.shape[axis] for axis in dot.x_axes.free(dot.x.ndim))),
    )
    side, stack_sizes = _summed_side(product, adapter), _stack_sizes(product, adapter)
    reason = _why_not(product, side, stack_sizes, dot.precision, adapter)
    if reason is not None:
        return Declined(reason)
    x = _as_vectors(product, dot, [size for size in stack_sizes if size > 1])
    # A product may be wider than its factors: `preferred_element_type`.
    x = x.astype(functools.reduce(np.promote_types, (x.dtype, view.dtype, dot.out.dtype)))
    y = _multiplied(adapter, side, x, [size > 1 for size in stack_sizes], dot.precision)
    if y is None:
        return Declined(f"{view.name} has no fast path here")
    return _as_result(product, dot, y)


class _Product(NamedTuple):
    """The runs of the weight's axes, by their role, and one run for all free axes of `x`."""

    summed: list[Run]
    batch: list[Run]
    free: list[Run]
    vectors: Run


def _summed_side(product: _Product, adapter: Any) -> str | None:
    """The side that is summed, `i` or `o`; `None` if the sum is over other axes."""
    sides = {run.side for run in product.summed}
    if not sides:  # a sum over an axis of size one has no runs
        sizes = zip("oi", matrix_shape(adapter)[-2:], strict=True)
        sides = {side for side, size in sizes if size == 1}
    return sides.pop() if sides in ({"i"}, {"o"}) else None


def _stack_sizes(product: _Product, adapter: Any) -> list[int]:
    """How many slices are in batch, for each axis of the adapter's stack."""
    stack = map(str, range(len(matrix_shape(adapter)) - 2))
    return [_count(run for run in product.batch if run.side == side) for side in stack]


def _why_not(
    product: _Product, side: str | None, stack_sizes: list[int], precision: Any, adapter: Any
) -> str | None:
    """Why the adapter cannot compute the product."""
    *stack, outputs, inputs = matrix_shape(adapter)
    if side is None or any(run.side in "io" for run in product.batch):
        return "a sum over other axes than all inputs or all outputs"
    if any(n not in (1, size) for n, size in zip(stack_sizes, stack, strict=True)):
        return "a product that has a part of a stack as its batch"
    if _count(product.summed) != (inputs if side == "i" else outputs):
        return "a sum over a part of the inputs or outputs"
    if precision is not None and _name_of(precision) is None:
        return f"a product with the precision {precision}"
    return None


def _as_vectors(product: _Product, dot: Dot, stack_sizes: list[int]) -> Array:
    """`x` as `(*stack, vectors, summed)`, in the order in which the adapter has them."""
    x = dot.x.transpose([*dot.x_axes.batch, *dot.x_axes.free(dot.x.ndim), *dot.x_axes.summed])
    runs = [*product.batch, product.vectors, *product.summed]
    order = [*as_stored(product.batch), product.vectors, *as_stored(product.summed)]
    x = rearranged(x, runs, order)
    return x.reshape(*stack_sizes, product.vectors.size, _count(product.summed))


def _as_result(product: _Product, dot: Dot, y: Array) -> Array:
    """The result of the product, from `y` `(*stack, vectors, the other side)`."""
    weight_runs = as_stored([*product.batch, *product.free])
    stack = [run for run in weight_runs if run.side not in "io"]
    features = [run for run in weight_runs if run.side in "io"]
    vectors, free = [product.vectors], product.free
    order = product.batch + (free + vectors if dot.weight_first else vectors + free)
    y = rearranged(y, [*stack, *vectors, *features], order)
    return y.reshape(dot.out.shape).astype(dot.out.dtype)


def as_stored(runs: Iterable[Run]) -> list[Run]:
    """Runs in the order of a matrix: the stack, the outputs, the inputs, slow runs first."""

    def place(run: Run) -> tuple[int, str, int]:
        return {"o": 1, "i": 2}.get(run.side, 0), run.side, -run.stride

    return sorted(runs, key=place)


def _count(runs: Iterable[Run]) -> int:
    return math.prod(run.size for run in runs)


def _name_of(precision: Any) -> str | None:
    """The name for `default_matmul_precision`, if both sides have one precision that it knows."""
    first, second = precision if isinstance(precision, tuple) else (precision, precision)
    is_known = first == second and isinstance(first, lax.Precision)
    return first.name.lower() if is_known else None


def _multiplied(
    adapter: Any, side: str | None, x: Array, has_axis: Sequence[bool], precision: Any
) -> Array | None:
    """Vectors times the weight; `None` if the adapter has no fast path.

    - `has_axis`: for each axis of the adapter's stack, whether `x` has it too.
    """
    product: Any = times_inputs if side == "i" else times_outputs
    for x_has_axis in reversed(has_axis):
        product = eqx.filter_vmap(product, in_axes=(eqx.if_array(0), 0 if x_has_axis else None))
    if precision is None:
        return product(adapter, x)
    with jax.default_matmul_precision(_name_of(precision)):
        return product(adapter, x)

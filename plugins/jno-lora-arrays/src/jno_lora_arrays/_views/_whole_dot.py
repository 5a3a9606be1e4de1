"""Products with the weight of an adapter, computed by the adapter's own `forward`.

`forward` multiplies vectors of all inputs, or its transpose vectors of all outputs. So the axes of
`x` are brought into the order of such vectors, and the axes of the result out of it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array

from ._adapted_layers import matrix_shape, times_inputs, times_outputs
from ._runs import Run, RunsView, rearranged
from ._uses import Declined, Dot


def dot_by_adapter(adapter: Any, view: RunsView, dot: Dot) -> Array | Declined:
    """`dot` of a view of the adapter's weight; `Declined` if the adapter has no path for it."""
    product = _product_of(view, dot)
    side = _summed_side(product.summed, adapter)
    reason = _why_not(product, side, dot.precision, adapter)
    if reason is not None:
        return Declined(reason)
    batch_sizes = _batch_sizes(product.batch, adapter)
    x = _as_vectors(product, dot, [size for size in batch_sizes if size > 1])
    # A product may be wider than its factors: `preferred_element_type`.
    x = x.astype(functools.reduce(np.promote_types, (x.dtype, view.dtype, dot.out.dtype)))
    times = times_inputs if side == "i" else times_outputs
    with _computing_in(dot.precision):
        y = _over_stack(times, adapter, x, [size > 1 for size in batch_sizes])
    if y is None:
        return Declined(f"{view.name} has no fast path here")
    return _as_result(product, dot, y)


class _Product(NamedTuple):
    """The runs that the axes of a product count through.

    - `summed`, `batch`, `free`: the runs of the weight's axes, by their role in the product.
    - `vectors`: one run for all free axes of `x`.
    """

    summed: list[Run]
    batch: list[Run]
    free: list[Run]
    vectors: Run


def _product_of(view: RunsView, dot: Dot) -> _Product:
    free_of_x = dot.x_axes.free(dot.x.ndim)
    return _Product(
        view.runs_along(dot.weight_axes.summed),
        view.runs_along(dot.weight_axes.batch),
        view.runs_along(dot.weight_axes.free(view.ndim)),
        Run("x", 1, math.prod(dot.x.shape[axis] for axis in free_of_x)),
    )


def _summed_side(summed: list[Run], adapter: Any) -> str | None:
    """The side that is summed, `i` or `o`; `None` if the sum is over other axes."""
    sides = {run.side for run in summed}
    if not sides:  # a sum over an axis of size one has no runs
        outputs, inputs = matrix_shape(adapter)[-2:]
        sides = {side for side, size in (("o", outputs), ("i", inputs)) if size == 1}
    return sides.pop() if sides in ({"i"}, {"o"}) else None


def _batch_sizes(batch: list[Run], adapter: Any) -> list[int]:
    """How many slices are in batch, for each axis of the adapter's stack."""
    stack = range(len(matrix_shape(adapter)) - 2)
    return [_count(run for run in batch if run.side == str(number)) for number in stack]


def _why_not(product: _Product, side: str | None, precision: Any, adapter: Any) -> str | None:
    """Why the adapter cannot compute the product."""
    *stack, outputs, inputs = matrix_shape(adapter)
    if side is None or any(run.side in "io" for run in product.batch):
        return "a sum over other axes than all inputs or all outputs"
    batch_sizes = _batch_sizes(product.batch, adapter)
    if any(n not in (1, size) for n, size in zip(batch_sizes, stack, strict=True)):
        return "a product that has a part of a stack as its batch"
    if _count(product.summed) != (inputs if side == "i" else outputs):
        return "a sum over a part of the inputs or outputs"
    if not _is_usual(precision):
        return f"a product with the precision {precision}"
    return None


def _as_vectors(product: _Product, dot: Dot, batch_sizes: list[int]) -> Array:
    """`x` as `(*stack, vectors, summed)`, in the order in which the adapter has them."""
    axes = [*dot.x_axes.batch, *dot.x_axes.free(dot.x.ndim), *dot.x_axes.summed]
    runs = [*product.batch, product.vectors, *product.summed]
    order = [*as_stored(product.batch), product.vectors, *as_stored(product.summed)]
    x = rearranged(dot.x.transpose(axes), runs, order)
    return x.reshape([*batch_sizes, product.vectors.size, _count(product.summed)])


def _as_result(product: _Product, dot: Dot, y: Array) -> Array:
    """The result of the product, from `y` `(*stack, vectors, the other side)`."""
    weight_runs = [*product.batch, *product.free]
    stack = as_stored(run for run in weight_runs if run.side not in "io")
    features = as_stored(run for run in weight_runs if run.side in "io")
    free = (
        [*product.free, product.vectors] if dot.weight_first else [product.vectors, *product.free]
    )
    y = rearranged(y, [*stack, product.vectors, *features], [*product.batch, *free])
    return y.reshape(dot.out.shape).astype(dot.out.dtype)


def as_stored(runs: Iterable[Run]) -> list[Run]:
    """Runs in the order of a matrix: the stack, the outputs, the inputs, slow runs first."""

    def place(run: Run) -> tuple[int, str, int]:
        return {"o": 1, "i": 2}.get(run.side, 0), run.side, -run.stride

    return sorted(runs, key=place)


def _count(runs: Iterable[Run]) -> int:
    return math.prod(run.size for run in runs)


def _is_usual(precision: Any) -> bool:
    """Whether both sides have one precision, as `default_matmul_precision` sets it."""
    if precision is None:
        return True
    first, second = precision if isinstance(precision, tuple) else (precision, precision)
    return first == second and isinstance(first, lax.Precision)


def _computing_in(precision: Any) -> contextlib.AbstractContextManager[Any]:
    if precision is None:
        return contextlib.nullcontext()
    first = precision[0] if isinstance(precision, tuple) else precision
    return jax.default_matmul_precision(first.name.lower())


def _over_stack(
    product: Callable[..., Any], adapter: Any, x: Array, has_axis: Sequence[bool]
) -> Array | None:
    """`product(adapter, x)`, mapped over the axes of a stack in front of the adapter's arrays.

    - `has_axis`: for each of these axes, whether `x` has it too.
    """
    declined: list[bool] = []

    def mapped(adapter: Any, x: Array) -> Array:
        y = product(adapter, x)
        declined.append(y is None)
        return x if y is None else y

    for x_has_axis in reversed(has_axis):
        in_axes = (eqx.if_array(0), 0 if x_has_axis else None)
        mapped = eqx.filter_vmap(mapped, in_axes=in_axes)
    y = mapped(adapter, x)
    return None if any(declined) else y

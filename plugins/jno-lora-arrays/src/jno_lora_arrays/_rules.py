"""Operations on virtual weights: views of them, and products with arrays."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode
from jaxtyping import Array

from ._virtual import Virtual, columns, times_inputs, times_outputs


class Declined(NamedTuple):
    """The answer of a rule that needs the merged weight."""

    reason: str


Rule = Callable[[Any, Sequence[Any]], Any]
RULES: dict[str, Rule] = {}


def _rule(*primitives: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(primitives, rule))
        return rule

    return register


@_rule("transpose")
def _transpose(eqn: Any, values: Sequence[Any]) -> Any:
    return values[0].transposed(eqn.params["permutation"])


@_rule("convert_element_type")
def _convert(eqn: Any, values: Sequence[Any]) -> Any:
    dtype = eqn.params["new_dtype"]
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return values[0].cast(dtype) if is_float else Declined("cast to another kind of number")


@_rule("copy", "copy_p")
def _same(eqn: Any, values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else Declined("no rule")


@_rule("slice", "dynamic_slice")
def _slice(eqn: Any, values: Sequence[Any]) -> Any:
    weight, *starts = values
    if eqn.params.get("strides") is not None:
        return Declined("a slice with strides")
    starts = starts or eqn.params["start_indices"]
    for axis, size in enumerate(eqn.outvars[0].aval.shape):
        if size != weight.shape[axis]:
            part = weight.part(axis, starts[axis], size)
            if part is None:
                return Declined(f"the update of a {weight.name} is not a product")
            weight = part
    return weight


@_rule("squeeze")
def _squeeze(eqn: Any, values: Sequence[Any]) -> Any:
    (weight,), axes = values, sorted(eqn.params["dimensions"], reverse=True)
    if not {"i", "o"}.isdisjoint(weight.axes[axis] for axis in axes):
        return jnp.squeeze(weight.dense(), axes)  # one row or column, merged
    return functools.reduce(Virtual.single, axes, weight)


@_rule("reshape", "broadcast_in_dim")
def _same_shape(eqn: Any, values: Sequence[Any]) -> Any:
    is_same = eqn.outvars[0].aval.shape == values[0].shape
    return values[0] if is_same and len(values) == 1 else Declined("the shape changes")


@_rule("dot_general")
def _dot_general(eqn: Any, values: Sequence[Any]) -> Any:
    (contracting, batch), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
    out = eqn.outvars[0].aval
    sides = [isinstance(x, Virtual) for x in values]
    if all(sides):
        return Declined("a product of two weights")
    if not _is_usual(precision):
        return Declined(f"a product with the precision {precision}")
    side = sides.index(True)
    weight, x = values[side], values[1 - side]
    summed = "".join(weight.axes[axis] for axis in contracting[side])
    shared = [weight.axes[axis] for axis in batch[side]]
    if summed not in ("i", "o") or not {"i", "o"}.isdisjoint(shared):
        return Declined(f"a sum over the axes {summed!r} of {weight.axes!r}")
    # A label for each axis of `x`: those of the weight, and its own.
    labels = [f"x{axis}" for axis in range(x.ndim)]
    for axis, label in zip(batch[1 - side], shared, strict=True):
        labels[axis] = label
    labels[contracting[1 - side][0]] = summed
    own = [label for label in labels if label[0] == "x"]
    stack = sorted(set(weight.axes) - {"i", "o"})
    front = [label for label in stack if label in shared]
    x = x.transpose([labels.index(label) for label in (*front, *own, summed)])
    rows = x.shape[len(front) : -1]
    vectors = x.reshape((*x.shape[: len(front)], math.prod(rows), x.shape[-1]))
    # A product may be wider than its factors: `preferred_element_type`.
    dtype = functools.reduce(np.promote_types, (x.dtype, weight.dtype, out.dtype))
    vectors = vectors.astype(dtype)
    product = times_inputs if summed == "i" else times_outputs
    with _computing_in(precision):
        y = _over_stack(product, weight, vectors, [label in shared for label in stack])
    if y is None:
        return Declined(f"{weight.name} has no fast path here")
    y = y.reshape((*y.shape[: len(stack)], *rows, y.shape[-1]))
    labels_of_y = [*stack, *own, "o" if summed == "i" else "i"]
    free = [label for label in weight.axes if label not in (*shared, summed)]
    order = (*shared, *free, *own) if side == 0 else (*shared, *own, *free)
    y = y.transpose([labels_of_y.index(label) for label in order])
    return y.astype(out.dtype)


@_rule("ragged_dot_general", "ragged_dot")
def _ragged_dot(eqn: Any, values: Sequence[Any]) -> Any:
    x, weight, sizes, *more = values
    if isinstance(x, Virtual) or more or weight.axes not in ("0io", "0oi"):
        return Declined("a ragged product that is not x @ weight[group]")
    numbers = eqn.params.get("ragged_dot_dimension_numbers")
    plain = (((1,), (1,)), ((), ()))
    if numbers is not None and (
        numbers.dot_dimension_numbers != plain or tuple(numbers.rhs_group_dimensions) != (0,)
    ):
        return Declined("a ragged product that is not x @ weight[group]")
    precision = eqn.params.get("precision")
    if not _is_usual(precision) or eqn.params.get("group_offset") is not None:
        return Declined("a product with a precision or offset of its own")
    factors = weight.factors()
    if factors is None:
        return Declined(f"the update of a {weight.name} is not a product")
    A, B = factors
    first, second = (A.mT, B.mT) if weight.axes == "0io" else (B, A)
    product = functools.partial(
        jax.lax.ragged_dot,
        group_sizes=sizes,
        precision=precision,
        preferred_element_type=eqn.outvars[0].aval.dtype,
    )
    low = product(x, first.astype(x.dtype))
    return product(x, weight.base()) + product(low.astype(x.dtype), second.astype(x.dtype))


@_rule("gather")
def _gather(eqn: Any, values: Sequence[Any]) -> Any:
    weight, index = values
    if not isinstance(weight, Virtual):
        return Declined("a weight that is used as an index")
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axis = weight.axes.index("i")
    is_lookup = (
        weight.axes in ("io", "oi")
        and numbers.collapsed_slice_dims == (axis,)
        and numbers.start_index_map == (axis,)
        and not numbers.operand_batching_dims
        and sizes[1 - axis] == weight.shape[1 - axis]
        and sizes[axis] == 1
    )
    if not is_lookup:
        return Declined(
            "not a lookup, by ids, of rows of an embedding or columns of a linear layer"
        )
    places = index.reshape(-1)
    found = columns(weight.adapter, jnp.clip(places, 0, weight.shape[axis] - 1))
    if found is None:
        return Declined(f"{weight.name} has no fast path here")
    if eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        fill = eqn.params["fill_value"]
        is_there = (places >= 0) & (places < weight.shape[axis])
        found = jnp.where(is_there[:, None], found, jnp.nan if fill is None else fill)
    out = eqn.outvars[0].aval
    (at,) = numbers.offset_dims
    found = found.reshape((*index.shape[:-1], found.shape[-1]))
    return jnp.moveaxis(found, -1, at).astype(out.dtype)


def _is_usual(precision: Any) -> bool:
    """Whether both sides of a product have one precision, as `default_matmul_precision` sets."""
    pair = precision if isinstance(precision, tuple) else (precision, precision)
    return precision is None or (pair[0] == pair[1] and isinstance(pair[0], jax.lax.Precision))


def _computing_in(precision: Any) -> contextlib.AbstractContextManager[Any]:
    if precision is None:
        return contextlib.nullcontext()
    one = precision[0] if isinstance(precision, tuple) else precision
    return jax.default_matmul_precision(one.name.lower())


def _over_stack(
    product: Callable[..., Any], weight: Virtual, x: Array, is_mapped: Sequence[bool]
) -> Array | None:
    """`product(adapter, x)`, mapped over the axes of a stack in front of the adapter's arrays.

    - `is_mapped`: for each of these axes, whether `x` has it too.
    """
    declined: list[bool] = []

    def one(adapter: Any, x: Array) -> Array:
        y = product(adapter, x)
        declined.append(y is None)
        return x if y is None else y

    mapped = one
    for has_axis in reversed(is_mapped):
        mapped = jax.vmap(mapped, in_axes=(0, 0 if has_axis else None))
    y = mapped(weight.adapter, x)
    return None if any(declined) else y

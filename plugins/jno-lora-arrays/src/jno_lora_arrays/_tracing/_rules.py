"""Operations on virtual weights: views of them, sums of them, and products with arrays."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode
from jaxtyping import Array

from .._views import Conv, DeclinedError, Dot, DotAxes, Lookup, Ragged, Result, Value, View, Virtual
from ._jax import out as _out

Values: TypeAlias = Sequence[Value]
Rule: TypeAlias = Callable[[JaxprEqn, Values], Value]


def _per_view(operation: Callable[[JaxprEqn, View], Result]) -> Rule:
    return lambda eqn, values: values[0].each(lambda view: operation(eqn, view))


_reshape = _per_view(lambda eqn, view: view.reshaped(_out(eqn).shape))


def _transpose_and_reshape(eqn: JaxprEqn, values: Values) -> Value:
    order = eqn.params["dimensions"]  # as `vmap` of a convolution makes it
    weight = values[0] if order is None else values[0].each(lambda view: view.transposed(order))
    return _reshape(eqn, [weight])


def _broadcast(eqn: JaxprEqn, values: Values) -> Value:
    shape = _out(eqn).shape
    weight_shape = tuple(shape[axis] for axis in eqn.params["broadcast_dimensions"])
    is_repeated = weight_shape != values[0].shape or math.prod(shape) != math.prod(weight_shape)
    if is_repeated or len(values) != 1:
        raise DeclinedError("repeated along an axis")
    return _reshape(eqn, values)


def _leafwise(eqn: JaxprEqn, values: Values) -> Value:
    return jax.tree.map(lambda x: _bound(eqn, x) if eqx.is_inexact_array(x) else x, values[0])


def _scale(eqn: JaxprEqn, values: Values) -> Value:
    is_division, dtype = eqn.primitive.name == "div", _out(eqn).dtype
    weight, number = values if isinstance(values[0], Virtual) else values[::-1]
    is_number = not isinstance(number, Virtual) and jnp.ndim(number) == 0
    if not is_number or (is_division and weight is not values[0]):
        raise DeclinedError("multiplied by an array")
    if is_division:  # half precision would round the inverse
        number = 1 / jnp.asarray(number, np.promote_types(dtype, jnp.float32))
    return weight.scaled(number, dtype)


def _add(eqn: JaxprEqn, values: Values) -> Value:
    first, second = values
    if not (isinstance(first, Virtual) and isinstance(second, Virtual)):
        raise DeclinedError("added to an array")
    second = second.negated() if eqn.primitive.name == "sub" else second
    return first.plus(second, _out(eqn).dtype)


def _complex(eqn: JaxprEqn, values: Values) -> Value:
    real, imaginary = values
    if not (isinstance(real, Virtual) and isinstance(imaginary, Virtual)):
        raise DeclinedError("a complex number with an array as one part")
    dtype = _out(eqn).dtype
    return real.plus(imaginary.scaled(jnp.asarray(1j, dtype), dtype), dtype)


def _moved_or_masked(eqn: JaxprEqn, values: Values) -> Value:
    # The entries keep their axes, and `infer` needs nothing else.
    weights = [x for x in values if isinstance(x, Virtual)]
    if len(weights) == 1 and weights[0].only_watches:
        return weights[0]
    raise DeclinedError("reversed" if eqn.primitive.name == "rev" else "masked")


def _concatenate(eqn: JaxprEqn, values: Values) -> Value:
    # A sum of weights, each padded to the full size. Plain arrays need not be watched.
    axis, start = eqn.params["dimension"], 0
    total, terms = _out(eqn).shape[axis], []
    for value in values:
        end = start + value.shape[axis]
        if isinstance(value, Virtual):
            widths = (axis, start, total - end)
            padded = value.each(lambda view, widths=widths: view.padded(*widths))
            terms += padded.terms  # pyright: ignore[reportAttributeAccessIssue]
        start = end
    return Virtual(tuple(terms), _out(eqn).dtype)


def _slice(eqn: JaxprEqn, values: Values) -> Value:
    weight, *starts = values
    if any(stride != 1 for stride in eqn.params.get("strides") or ()):
        raise DeclinedError("a slice with strides")
    starts = starts or eqn.params["start_indices"]
    for axis, size in enumerate(_out(eqn).shape):
        if size != weight.shape[axis]:
            weight = _cut(weight, axis, starts[axis], size)  # pyright: ignore[reportArgumentType]
    return weight


def _split(eqn: JaxprEqn, values: Values) -> Value:
    axis, start, pieces = eqn.params["axis"], 0, []
    for size in map(int, eqn.params.get("sizes", (1,) * len(eqn.outvars))):
        piece = _cut(values[0], axis, start, size)
        if isinstance(piece, Virtual) and eqn.primitive.name == "unstack":
            piece = piece.each(lambda view: view.reshaped(_out(eqn).shape))
        pieces.append(piece)
        start += size
    return pieces


def _dot_general(eqn: JaxprEqn, values: Values) -> Value:
    left, right = values
    if isinstance(left, Virtual) and isinstance(right, Virtual):
        raise DeclinedError("a product of two weights")
    if eqn.params.get("out_sharding") is not None:
        raise DeclinedError("a product that asks for a sharding")
    left_axes, right_axes = map(DotAxes, *eqn.params["dimension_numbers"])
    precision, out = eqn.params["precision"], _out(eqn)
    if isinstance(left, Virtual):
        return left.product(Dot(right, right_axes, left_axes, True, precision, out))
    return right.product(Dot(left, left_axes, right_axes, False, precision, out))


def _conv(eqn: JaxprEqn, values: Values) -> Value:
    x, kernel = values
    if isinstance(x, Virtual):
        raise DeclinedError("a weight that is convolved itself")
    return kernel.product(Conv(x, eqn.params, _out(eqn)))


def _ragged_dot(eqn: JaxprEqn, values: Values) -> Value:
    x, weight, sizes, *more = values
    numbers = eqn.params.get("ragged_dot_dimension_numbers")
    plain = (((1,), (1,)), ((), ()))
    is_plain = numbers is None or (
        numbers.dot_dimension_numbers == plain and tuple(numbers.rhs_group_dimensions) == (0,)
    )
    if isinstance(x, Virtual) or more or not is_plain or eqn.params.get("group_offset") is not None:
        raise DeclinedError("a ragged product that is not x @ weight[group]")
    ragged = Ragged(x, sizes, eqn.params.get("precision"), _out(eqn))
    return weight.each(lambda view: view.ragged(ragged), ragged.out.dtype)


def _gather(eqn: JaxprEqn, values: Values) -> Value:
    weight, index = values
    _check_lookup(eqn, weight)
    numbers, out = eqn.params["dimension_numbers"], _out(eqn)
    axes = numbers.start_index_map
    ends = [weight.shape[axis] - 1 for axis in axes]
    places = [index[..., n] for n in range(len(axes))]
    in_bounds = None
    if eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        inside = [(place >= 0) & (place <= end) for place, end in zip(places, ends, strict=True)]
        in_bounds = jnp.all(jnp.stack(inside), axis=0)
    clipped = tuple(jnp.clip(place, 0, end) for place, end in zip(places, ends, strict=True))
    at = tuple(n for n in range(len(out.shape)) if n not in numbers.offset_dims)
    lookup = Lookup(axes, clipped, at, in_bounds, lambda array: _bound(eqn, array, index), out)
    return weight.each(lambda view: view.looked_up(lookup))


def _check_lookup(eqn: JaxprEqn, weight: Virtual) -> None:
    """Declines a `gather` that is not a lookup of whole slices."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axes, fill = numbers.start_index_map, eqn.params["fill_value"]
    whole_axes = [axis for axis in range(len(sizes)) if axis not in axes]
    if (
        tuple(sorted(axes)) != tuple(numbers.collapsed_slice_dims)
        or numbers.operand_batching_dims
        or any(sizes[axis] != weight.shape[axis] for axis in whole_axes)
    ):
        raise DeclinedError("a gather of parts of slices")
    is_filled = eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP and fill
    is_nan = fill != fill
    if is_filled and not (weight.is_one_view or is_nan):
        raise DeclinedError("a lookup in a sum or multiple that is filled with a number")


def _cut(weight: Virtual, axis: int, start: int | Array, size: int) -> Virtual | Array:
    return weight.each(lambda view: view.cut(axis, start, size))


def _bound(eqn: JaxprEqn, *values: Array) -> Array:
    """The operation itself on other arrays."""
    return eqn.primitive.bind(*values, **eqn.params)


RULES: dict[str, Rule] = {
    "transpose": _per_view(lambda eqn, view: view.transposed(eqn.params["permutation"])),
    **dict.fromkeys(("squeeze", "expand_dims"), _reshape),
    "reduce_sum": _per_view(lambda eqn, view: view.summed(eqn.params["axes"])),
    **dict.fromkeys(
        ("sharding_constraint", "reshard"),
        _per_view(lambda eqn, view: view.constrained(lambda x: _bound(eqn, x))),
    ),
    **dict.fromkeys(("copy", "copy_p"), lambda eqn, values: values[0]),
    "neg": lambda eqn, values: values[0].negated(),
    "convert_element_type": lambda eqn, values: values[0].cast(eqn.params["new_dtype"]),
    "reshape": _transpose_and_reshape,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("stop_gradient", "pvary", "pcast"), _leafwise),
    **dict.fromkeys(("mul", "div"), _scale),
    **dict.fromkeys(("add", "add_any", "sub"), _add),
    "complex": _complex,
    **dict.fromkeys(("select_n", "rev"), _moved_or_masked),
    "concatenate": _concatenate,
    **dict.fromkeys(("slice", "dynamic_slice"), _slice),
    **dict.fromkeys(("split", "unstack"), _split),
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    **dict.fromkeys(("ragged_dot_general", "ragged_dot"), _ragged_dot),
    "gather": _gather,
}

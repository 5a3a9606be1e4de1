"""Products of an array with the factors of a weight `W + B A`, by the names of their axes."""

import string
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._view import Conv, DeclinedError, Dot

RANK = "Z"  # the name of the rank axis of a factor


class Named(NamedTuple):
    """An array with a letter for each of its axes."""

    array: Array
    names: str

    def axes(self, names: Iterable[str]) -> list[int]:
        return [self.names.index(name) for name in names]

    def cast(self, dtype: Any) -> "Named":
        """In another dtype. Traces faster than `astype`."""
        return self._replace(array=lax.convert_element_type(self.array, dtype))

    def arranged(self, names: str) -> Array:
        """The array with its axes in this order, and an axis of size one for each missing name."""
        array = lax.transpose(self.array, self.axes(n for n in names if n in self.names))
        missing = [axis for axis, name in enumerate(names) if name not in self.names]
        return lax.expand_dims(array, missing) if missing else array


def contract(a: Named, b: Named, names: str, precision: Any = None) -> Named:
    """The sum of `a b` over the axes that `names` lacks. Traces faster than `jnp.einsum`.

    A name that one array alone has, and `names` lacks, must belong to an axis of size one.
    """
    shared = [name for name in a.names if name in b.names]
    batch = [name for name in shared if name in names]
    summed = [name for name in shared if name not in names]
    numbers = ((a.axes(summed), b.axes(summed)), (a.axes(batch), b.axes(batch)))
    y = lax.dot_general(a.array, b.array, numbers, precision=precision)
    free = [name for name in a.names + b.names if name not in shared]
    dropped = [len(batch) + n for n, name in enumerate(free) if name not in names]
    remaining = "".join(name for name in batch + free if name in names)
    y = lax.squeeze(y, dropped) if dropped else y
    return Named(Named(y, remaining).arranged(names), names)


def dot_with_factors(
    dot: Dot, first: Named, second: Named, weight_names: str, weight_dtype: Any
) -> Array:
    """The product with `B A` alone: `x` is multiplied by the `first` factor, then the `second`."""
    x_names, out_names = dot.names(weight_names)
    # A product may be wider than its factors: `preferred_element_type`.
    dtype = np.promote_types(dot.x.dtype, dot.out.dtype)
    x = Named(dot.x, x_names).cast(dtype)
    first, second = first.cast(dtype), second.cast(dtype)
    # An algorithm belongs to the dtypes that the function multiplies.
    has_same_dtypes = dtype == dot.x.dtype == weight_dtype
    precision = dot.precision if has_same_dtypes or _is_plain(dot.precision) else None
    needed = dict.fromkeys(out_names + second.names)
    names = [name for name in needed if name in x.names + first.names and name != RANK]
    x = contract(x, first, "".join(names) + RANK, precision)
    names = [name for name in out_names if name in x.names + second.names]
    y = contract(x, second, "".join(names), precision).array
    return lax.convert_element_type(lax.reshape(y, dot.out.shape), dot.out.dtype)


def _is_plain(precision: Any) -> bool:
    """Whether a precision is `None` or a `jax.lax.Precision`, and not an algorithm."""
    first = precision[0] if isinstance(precision, tuple) else precision
    return first is None or isinstance(first, lax.Precision)


def conv_with_factors(
    conv: Conv, base: Array, A: Named, B: Named, kinds: str, axis_names: str
) -> Array:
    """The convolution with `W`, plus a convolution to the rank's channels and a product."""
    starts_with_A, convolves_last = _order(conv, kinds)
    rank, out_channels = len(A.array), conv.out.shape[conv.params["dimension_numbers"].out_spec[1]]
    if 2 * conv.groups * rank > out_channels:
        raise DeclinedError("merging is cheaper: the kernel has few channels", is_choice=True)
    first, second = (A, B) if starts_with_A else (B, A)
    dtype = np.promote_types(conv.x.dtype, conv.out.dtype)
    x, first, second = conv.x.astype(dtype), first.cast(dtype), second.cast(dtype)
    y = conv.applied_to(conv.x, base, conv.out.dtype)
    update = _product_then_conv if convolves_last else _conv_then_product
    return y + update(conv, x, first, second, axis_names).reshape(y.shape).astype(y.dtype)


def _order(conv: Conv, kinds: str) -> tuple[bool, bool]:
    """Whether `A` comes first, and whether the second factor has the places of the kernel."""
    outputs, inputs, *places = (kinds[axis] for axis in conv.kernel_axes)
    place_kinds = {*places} - {"1"}
    has_stack = "s" in (outputs, inputs, *place_kinds)
    if conv.params["batch_group_count"] != 1 or has_stack or len(place_kinds) > 1:
        raise DeclinedError("a convolution that sums over other axes than a product does")
    # An axis of size one belongs to the side of its neighbours.
    summed = next((kind for kind in (inputs, *place_kinds) if kind != "1"), None)
    if summed is None:
        summed = "o" if outputs == "i" else "i"
    convolves_last = bool(place_kinds - {summed})
    if outputs == summed or (convolves_last and (conv.groups != 1 or inputs == "1")):
        raise DeclinedError("a convolution whose inputs and outputs are of one kind")
    return summed == "i", convolves_last


def _product_then_conv(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A product of the channels with a factor, whose result is convolved with the other factor."""
    input_name = axis_names[conv.kernel_axes[1]]
    names = string.ascii_uppercase[: x.ndim]
    channel = names[conv.params["dimension_numbers"].lhs_spec[1]]
    named = Named(x, names.replace(channel, input_name))
    x = contract(named, first, names.replace(channel, RANK), conv.params["precision"]).array
    return conv.applied_to(x, second.arranged(axis_names.replace(input_name, RANK)), x.dtype)


def _conv_then_product(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A convolution with a factor, whose channels are multiplied with the other factor."""
    outputs, rank = conv.kernel_axes[0], len(first.array)
    kernel = first.arranged(axis_names.replace(axis_names[outputs], RANK))
    x = conv.applied_to(x, jnp.concatenate([kernel] * conv.groups, axis=outputs), x.dtype)
    channel = conv.params["dimension_numbers"].out_spec[1]
    names = string.ascii_uppercase[: x.ndim]
    x = x.reshape(*x.shape[:channel], conv.groups, rank, *x.shape[channel + 1 :])
    first = Named(x, names.replace(names[channel], f"g{RANK}"))
    second = Named(second.array.reshape(rank, conv.groups, -1), f"{RANK}go")
    names = names.replace(names[channel], "go")
    return contract(first, second, names, conv.params["precision"]).array

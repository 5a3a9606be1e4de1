"""Convolutions with the factors of a kernel `W + B A`."""

import string
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._named import RANK, Named, contract
from ._uses import Conv, Declined


def conv_with_factors(
    conv: Conv, base: Array, A: Named, B: Named, kinds: str, axis_names: str
) -> Array | Declined:
    """The convolution with `W`, plus a convolution to the rank's channels and a product.

    - `kinds`, `axis_names`: the kinds and the names of the kernel's axes, as of `Factored`.
    """
    order = _order(conv, kinds)
    if isinstance(order, Declined):
        return order
    rank, out_channels = len(A.array), conv.out.shape[conv.params["dimension_numbers"].out_spec[1]]
    if 2 * conv.groups * rank > out_channels:
        return Declined("merging is cheaper: the kernel has few channels", is_choice=True)
    first, second = (A, B) if order.starts_with_A else (B, A)
    dtype = np.promote_types(conv.x.dtype, conv.out.dtype)
    x, first, second = conv.x.astype(dtype), first.cast(dtype), second.cast(dtype)
    y = conv.applied_to(conv.x, base, conv.out.dtype)
    update = _product_then_conv if order.convolves_last else _conv_then_product
    return y + update(conv, x, first, second, axis_names).reshape(y.shape).astype(y.dtype)


class _Order(NamedTuple):
    """The factor that comes first, and whether the second factor has the places of the kernel."""

    starts_with_A: bool
    convolves_last: bool


def _order(conv: Conv, kinds: str) -> _Order | Declined:
    outputs, inputs, *places = (kinds[axis] for axis in conv.kernel_axes)
    place_kinds = {*places} - {"1"}
    has_stack = "s" in (outputs, inputs, *place_kinds)
    if conv.params["batch_group_count"] != 1 or has_stack or len(place_kinds) > 1:
        return Declined("a convolution that sums over other axes than a product does")
    # An axis of size one belongs to the side of the others.
    summed = next((kind for kind in (inputs, *place_kinds) if kind != "1"), None)
    if summed is None:
        summed = "o" if outputs == "i" else "i"
    convolves_last = bool(place_kinds - {summed})
    if outputs == summed or (convolves_last and (conv.groups != 1 or inputs == "1")):
        return Declined("a convolution whose inputs and outputs are of one kind")
    return _Order(summed == "i", convolves_last)


def _product_then_conv(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A product of the channels with a factor, whose result is convolved with the other factor."""
    input_name = axis_names[conv.kernel_axes[1]]
    x_names = list(string.ascii_uppercase[: x.ndim])
    x_names[conv.params["dimension_numbers"].lhs_spec[1]] = input_name
    names = "".join(x_names)
    low_names = names.replace(input_name, RANK)
    precision = conv.params["precision"]
    low_rank = contract(Named(x, names), first, low_names, precision=precision)
    kernel = second.arranged(axis_names.replace(input_name, RANK))
    return conv.applied_to(low_rank.array, kernel, x.dtype)


def _conv_then_product(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A convolution with a factor, whose channels are multiplied with the other factor."""
    outputs, rank = conv.kernel_axes[0], len(first.array)
    kernel = first.arranged(axis_names.replace(axis_names[outputs], RANK))
    low_rank = conv.applied_to(x, jnp.concatenate([kernel] * conv.groups, axis=outputs), x.dtype)
    channel = conv.params["dimension_numbers"].out_spec[1]
    before, after = low_rank.shape[:channel], low_rank.shape[channel + 1 :]
    low_rank = low_rank.reshape(*before, conv.groups, rank, *after)
    names = string.ascii_uppercase[: x.ndim]
    names_before, names_after = names[:channel], names[channel + 1 :]
    return contract(
        Named(low_rank, f"{names_before}g{RANK}{names_after}"),
        Named(second.array.reshape(rank, conv.groups, -1), f"{RANK}go"),
        f"{names_before}go{names_after}",
        precision=conv.params["precision"],
    ).array

"""Convolutions with a kernel `W + B A`, whose update is a convolution and a product of channels."""

import string

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._named import RANK, Named, common, contract, without
from ._view import Conv, DeclinedError


def conv_with_factors(conv: Conv, base: Named, A: Named, B: Named) -> Array:
    """The convolution with `W`, plus a convolution to the rank's channels and a product.

    **Raises:** `DeclinedError` if the update is not like this, or merging is cheaper.
    """
    outputs, inputs, *places = (base.names[axis] for axis in conv.kernel_axes)
    # The first factor sums over the input channels, or over places if there is only one channel.
    summed = common(inputs + "".join(places), A.names + B.names)[:1]
    starts_with_A = summed in A.names if summed else outputs in B.names
    first, second = (A, B) if starts_with_A else (B, A)
    places_of = [common("".join(places), factor.names) for factor in (first, second)]
    if (
        conv.params["batch_group_count"] != 1
        or without(common(first.names, second.names), RANK)
        or all(places_of)
    ):
        raise DeclinedError("a convolution that sums over other axes than a product does")
    convolves_last = bool(places_of[1])
    if outputs in first.names or (convolves_last and conv.groups != 1):
        raise DeclinedError("a convolution whose inputs and outputs are of one kind")
    if 2 * conv.groups * A.size(RANK) > conv.out.shape[conv.out_channel]:
        raise DeclinedError("merging is cheaper: the kernel has few channels", is_choice=True)
    dtype = np.promote_types(conv.x.dtype, conv.out.dtype)
    x, first, second = conv.x.astype(dtype), first.cast(dtype), second.cast(dtype)
    update = _product_then_conv if convolves_last else _conv_then_product
    y = conv.applied_to(conv.x, base.array, conv.out.dtype)
    return y + update(conv, x, first, second, base.names).reshape(y.shape).astype(y.dtype)


def _product_then_conv(conv: Conv, x: Array, first: Named, second: Named, kernel: str) -> Array:
    """A product of the channels with a factor, whose result is convolved with the other factor."""
    inputs = kernel[conv.kernel_axes[1]]
    names = string.ascii_uppercase[: x.ndim]
    channel = names[conv.in_channel]
    named = Named(x, names.replace(channel, inputs))
    x = contract(named, first, names.replace(channel, RANK), conv.params["precision"]).array
    return conv.applied_to(x, second.arranged(kernel.replace(inputs, RANK)), x.dtype)


def _conv_then_product(conv: Conv, x: Array, first: Named, second: Named, kernel: str) -> Array:
    """A convolution with a factor, whose channels are multiplied with the other factor."""
    axis, rank = conv.kernel_axes[0], first.size(RANK)
    outputs = kernel[axis]
    filters = first.arranged(kernel.replace(outputs, RANK))
    x = conv.applied_to(x, jnp.concatenate([filters] * conv.groups, axis=axis), x.dtype)
    names = string.ascii_uppercase[: x.ndim]
    channel = conv.out_channel
    x = x.reshape(*x.shape[:channel], conv.groups, rank, *x.shape[channel + 1 :])
    grouped = Named(x, names.replace(names[channel], f"g{RANK}"))
    mixing = second.arranged(RANK + outputs).reshape(rank, conv.groups, -1)
    result = names.replace(names[channel], "go")
    return contract(grouped, Named(mixing, f"{RANK}go"), result, conv.params["precision"]).array

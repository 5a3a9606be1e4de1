"""A checkpoint policy that saves only the outputs of products with weights."""

import math
from collections.abc import Callable

from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jaxtyping import PyTree

from jno.lora.extending import adapted_layers


def save_products(model: PyTree) -> Callable[..., bool]:
    """A policy for `jax.checkpoint`: the gradient saves the products with the weights of layers.

    Everything between these products (norms, activations, the scores of attention) is recomputed,
    which takes a few per cent of a step's operations. A product whose contracted axis is at most
    the largest rank in `model` is recomputed too, because it is the `B (A x)` of an adapter, which
    is as large as the output of its layer.

        @functools.partial(jax.checkpoint, policy=save_products(model))
        def body(x, arrays): ...

    Outside a loop, XLA for CPUs merges the recomputation with the forward pass, so no memory is
    saved.

    **Arguments:**

    - `model`: the model with its adapters, or the part of the model that is checkpointed.
    """
    ranks = (getattr(adapter, "rank", None) for _, adapter in adapted_layers(model))
    largest_rank = max((rank for rank in ranks if isinstance(rank, int)), default=0)

    def is_saved(primitive: Primitive, *inputs: ShapedArray, **params: PyTree) -> bool:
        if primitive is lax.dot_general_p:
            (contracted, _), (batched, _) = params["dimension_numbers"]
            size = math.prod(inputs[0].shape[axis] for axis in contracted)
            return not batched and size > largest_rank
        if primitive is lax.conv_general_dilated_p:
            kernel, output_axis = inputs[1].shape, params["dimension_numbers"].rhs_spec[0]
            return math.prod(kernel) // kernel[output_axis] > largest_rank
        # A spectral layer's product ends here. Its complex results are as large, and come earlier.
        return primitive is lax.fft_p and params["fft_type"] == lax.FftType.IRFFT

    return is_saved

"""What the layers have in common whose kernel has its channels at the end."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno_lora_zoo import (
    LayerKind,
    MeshAxes,
    cast_like,
    in_compute_dtype,
    is_float_array,
    sharded_over,
)


class ChannelLastKernelLayer(LayerKind):
    """A layer with a kernel `(*kernel_size, in / groups, out)`.

    The matrix is `(out, in / groups * prod(kernel_size))`: a row is one output channel's kernel,
    with the inputs as its slowest axis. That is the matrix of the same convolution in Equinox's
    layout, `(out, in / groups, *kernel_size)`, so that an adapter's arrays are the same in both.

    The layers do not say which axis is which, and an array cannot tell: `num_spatial_dims` does,
    for the classes it knows. Every other kernel is refused. A subclass declares another library's.

    No layer is "known": all are called with the law's kernel in them, whatever padding, stride and
    batch axes they handle. A batch shares that kernel. Convolving with `A` apart would save the
    gradient of the whole kernel, for one more thin convolution: for UNets on a CPU that was now
    faster, more often slower.
    """

    @classmethod
    @abc.abstractmethod
    def num_spatial_dims(cls, leaf: Any) -> int | None:
        """How many axes of `leaf`'s kernel are spatial, or `None` if its layout is not known."""

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        dims = cls.num_spatial_dims(leaf)
        if dims is None or not is_float_array(leaf.weight):
            return False
        return leaf.weight.ndim >= dims + 2 and 0 not in leaf.weight.shape

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        """The axes of the weight before `(*kernel_size, in / groups, out)`."""
        dims = cls.num_spatial_dims(leaf)
        return 0 if dims is None else leaf.weight.ndim - dims - 2

    @classmethod
    def matrix(cls, layer: Any) -> Float[Array, "out in"]:
        kernel = jnp.moveaxis(in_compute_dtype(layer.weight), (-1, -2), (0, 1))
        return kernel.reshape(kernel.shape[0], -1)

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        *kernel_size, inputs, outputs = base.weight.shape
        kernel = cast_like(matrix, base.weight).reshape(outputs, inputs, *kernel_size)
        kernel = jnp.moveaxis(kernel, (0, 1), (-1, -2))
        return eqx.tree_at(lambda m: m.weight, base, kernel)

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        stack = cls.stack_ndim(base)
        *spatial, inputs, outputs = sharded_over(base.weight)
        # A row of the matrix is cut as the inputs are, unless the spatial axes are cut as well.
        if any(spatial[stack:]):
            inputs = None
        return MeshAxes(tuple(spatial[:stack]), outputs, inputs)

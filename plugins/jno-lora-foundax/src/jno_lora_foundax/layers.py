"""foundax's layers: convolutions with channel-last kernels, and MPP's linear layers."""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno_lora_zoo import (
    LayerKind,
    LinearLayer,
    MeshAxes,
    cast_like,
    in_compute_dtype,
    is_float_array,
    sharded_over,
)

from ._classes import value_for


class ChannelLastKernelLayer(LayerKind):
    """A layer with a kernel `(*kernel_size, in / groups, out)`.

    The matrix is `(out, in / groups * prod(kernel_size))`: a row is one output channel's kernel,
    with the inputs as its slowest axis. The same convolution in Equinox's layout,
    `(out, in / groups, *kernel_size)`, has the same matrix, so that an adapter's arrays fit both.

    The meaning of an axis cannot be read from a layer or its arrays, so `num_spatial_dims` defines
    it for known classes, and all other kernels are refused. A subclass declares the layers of
    another library.

    There are no fast paths, because for UNets on a CPU, convolving with `A` separately was more
    often slower than faster.
    """

    @classmethod
    @abc.abstractmethod
    def num_spatial_dims(cls, leaf: object) -> int | None:
        """The number of spatial axes of `leaf`'s kernel, or `None` if the layout is unknown."""

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        dims = cls.num_spatial_dims(leaf)
        if dims is None or not is_float_array(leaf.weight):
            return False
        return leaf.weight.ndim >= dims + 2 and 0 not in leaf.weight.shape

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        dims = cls.num_spatial_dims(leaf)
        return 0 if dims is None else leaf.weight.ndim - dims - 2

    @classmethod
    def matrix(cls, layer: Any) -> Float[Array, "out in"]:
        kernel = jnp.moveaxis(in_compute_dtype(layer.weight), (-1, -2), (0, 1))
        return kernel.reshape(kernel.shape[0], -1)

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        return eqx.tree_at(lambda m: m.weight, base, _kernel(matrix, base.weight))

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        """The patches, which are the outputs of the layer for kernels with a single 1."""
        ones = jnp.eye(math.prod(layer.weight.shape[:-1]), dtype=layer.weight.dtype)
        return super().inputs_of(layer, cls._called_with(layer, ones)(*args, **kwargs))

    @classmethod
    def _called_with(cls, layer: Any, matrix: Float[Array, "_ in"]) -> Any:
        """`layer` without a bias, with the kernels of a matrix of any number of outputs."""
        new = (_kernel(matrix, layer.weight), None)
        return eqx.tree_at(lambda m: (m.weight, m.bias), layer, new, is_leaf=lambda x: x is None)

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        stack = cls.stack_ndim(base)
        *spatial, inputs, outputs = sharded_over(base.weight)
        # A row of the matrix is sharded like the inputs, unless the spatial axes are sharded too.
        inputs = None if any(spatial[stack:]) else inputs
        return MeshAxes(tuple(spatial[:stack]), outputs, inputs)


def _kernel(matrix: Float[Array, "_ in"], weight: Any) -> Array:
    """The rows of a matrix as the outputs of a kernel, which is otherwise like `weight`."""
    *kernel_size, inputs, _ = weight.shape
    kernel = cast_like(matrix, weight).reshape(-1, inputs, *kernel_size)
    return jnp.moveaxis(kernel, (0, 1), (-1, -2))


_CONVS = {
    ("foundax.architectures.unet", "Conv1dNHWC"): 1,
    ("foundax.architectures.unet", "Conv2dNHWC"): 2,
    ("foundax.architectures.unet", "Conv3dNHWC"): 3,
    ("foundax.architectures.common", "Conv2d"): 2,
    ("foundax.architectures.deeponet", "Conv1dCL"): 1,
}
_TRANSPOSED = {
    ("foundax.architectures.unet", "ConvTranspose1d"): 1,
    ("foundax.architectures.unet", "ConvTranspose3d"): 3,
    ("foundax.architectures.common", "ConvTranspose2d"): 2,
}
_SUBSAMPLED = {("jax_mpp.avit_eqx", "SubsampledLinear"): True}


class ChannelLastConvLayer(ChannelLastKernelLayer):
    """`Conv1dNHWC`, `Conv2dNHWC`, `Conv3dNHWC`, `Conv2d` and `Conv1dCL` of foundax.

    The convolutions of Poseidon contain an `eqx.nn.Conv2d`, which the zoo's adapters claim.
    """

    @classmethod
    def num_spatial_dims(cls, leaf: object) -> int | None:
        return value_for(leaf, _CONVS)


class ChannelLastConvTransposeLayer(ChannelLastKernelLayer):
    """`ConvTranspose1d`, `ConvTranspose2d` and `ConvTranspose3d` of foundax.

    They allocate their kernel as `(*kernel_size, out, in)`, but the call uses it as
    `(*kernel_size, in, out)`, which counts here. A layer with different numbers of inputs and
    outputs cannot run, and is refused. The models of foundax do not contain such layers.
    """

    @classmethod
    def num_spatial_dims(cls, leaf: object) -> int | None:
        return value_for(leaf, _TRANSPOSED)

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        return super().fits(leaf) and leaf.weight.shape[-1] == leaf.weight.shape[-2]


class SubsampledLinearLayer(LinearLayer):
    """MPP's `SubsampledLinear`: a weight `(dim_out, dim_in)`, called with `(x, labels)`.

    The labels choose the columns (or, without `subsample_in`, the rows) that a call uses. The
    matrix is the whole weight, so one adapter serves every set of physical fields. The layer itself
    is called, with the adapted weight.
    """

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        if not value_for(leaf, _SUBSAMPLED):
            return False
        sizes = (leaf.dim_out, leaf.dim_in)
        return is_float_array(leaf.weight) and leaf.weight.shape[-2:] == sizes and 0 not in sizes

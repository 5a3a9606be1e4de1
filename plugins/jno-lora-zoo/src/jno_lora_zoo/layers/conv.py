"""Convolutions: `eqx.nn.Conv` and its look-alikes, and `eqx.nn.ConvTranspose`."""

from typing import Any

import jax.numpy as jnp
from equinox import nn

from jno.lora import ConvLike

from .._arrays import describe
from .kernel import KernelLayer, kernel_shape


class ConvLayer(KernelLayer):
    """`eqx.nn.Conv1d/2d/3d`, with groups, strides, dilation and every padding mode.

    Duck types must declare `kernel_size`, and their kernel must be `(out, in / groups,
    *kernel_size)`. Other layouts (channel-last) and transposed convolutions are not claimed.
    """

    exact_classes = (nn.Conv, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    @classmethod
    def fits(cls, leaf: object) -> bool:
        if not isinstance(leaf, nn.Conv):
            if isinstance(leaf, nn.ConvTranspose) or not isinstance(leaf, ConvLike):
                return False
            if hasattr(leaf, "output_padding") or not hasattr(leaf, "kernel_size"):
                return False
        return cls.keeps_layout(leaf)

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        if isinstance(leaf, nn.ConvTranspose):
            return 'a transposed convolution, adapted on request: `wrapper="LoRAConvTranspose"`'
        if hasattr(leaf, "output_padding"):
            return (
                "it looks like a transposed convolution but is not an eqx.nn.ConvTranspose: other "
                "libraries swap the first two axes of the kernel"
            )
        # Other plugins adapt weights with modes.
        is_of_modes = jnp.iscomplexobj(leaf.weight) and not hasattr(leaf, "kernel_size")
        if leaf.weight.ndim < 3 or isinstance(leaf, nn.LayerNorm) or is_of_modes:
            return None
        sizes = ("in_channels", "out_channels", "kernel_size")
        undeclared = [name for name in sizes if name not in dir(leaf)]
        if undeclared:
            return (
                f"its weight is {describe(leaf.weight)}, and without {', '.join(undeclared)} "
                "nothing says which axes are outputs, inputs and kernel"
            )
        if 0 in leaf.weight.shape:
            return f"its kernel {describe(leaf.weight)} is empty"
        return (
            f"its kernel is {describe(leaf.weight)}, not (out_channels, in_channels / groups, "
            f"*kernel_size) = {kernel_shape(leaf)}"
        )


class ConvTransposeLayer(KernelLayer):
    """`eqx.nn.ConvTranspose1d/2d/3d`, with groups, strides, dilation and output padding.

    Equinox keeps the kernel as `(out, in / groups, *kernel_size)` here too, and convolves it with
    the input spread out by the stride, so it is adapted like a convolution. Look-alikes are not
    claimed, because other libraries swap the first two axes.
    """

    exact_classes = (nn.ConvTranspose, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    @classmethod
    def fits(cls, leaf: object) -> bool:
        return isinstance(leaf, nn.ConvTranspose) and cls.keeps_layout(leaf)

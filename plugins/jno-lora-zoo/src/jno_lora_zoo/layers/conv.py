"""Convolutions: `eqx.nn.Conv`, its subclasses, and everything that looks like it."""

from typing import Any

import equinox as eqx

from jno.lora import ConvLike

from .._arrays import describe
from .kernel import KernelLayer, kernel_shape


class ConvLayer(KernelLayer):
    """`eqx.nn.Conv1d/2d/3d`, with groups, strides, dilation and every padding mode.

    Duck types must declare `kernel_size`, and their kernel must be `(out, in / groups,
    *kernel_size)`. A kernel laid out otherwise (channel-last), and a transposed convolution, is
    not claimed.
    """

    known = (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d)

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        if not isinstance(leaf, eqx.nn.Conv):
            if isinstance(leaf, eqx.nn.ConvTranspose) or not isinstance(leaf, ConvLike):
                return False
            if hasattr(leaf, "output_padding") or not hasattr(leaf, "kernel_size"):
                return False
        return cls.keeps_layout(leaf)

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        if isinstance(leaf, eqx.nn.ConvTranspose):
            return 'a transposed convolution, adapted on request: `wrapper="LoRAConvTranspose"`'
        if hasattr(leaf, "output_padding"):
            return (
                "it looks like a transposed convolution but is not an eqx.nn.ConvTranspose: other "
                "libraries swap the first two axes of the kernel"
            )
        if leaf.weight.ndim < 3 or isinstance(leaf, eqx.nn.LayerNorm):
            return None
        undeclared = [
            n for n in ("in_channels", "out_channels", "kernel_size") if n not in dir(leaf)
        ]
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

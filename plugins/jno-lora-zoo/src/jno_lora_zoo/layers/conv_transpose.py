"""Transposed convolutions: `eqx.nn.ConvTranspose` and its subclasses."""

from typing import Any

import equinox as eqx

from .kernel import KernelLayer


class ConvTransposeLayer(KernelLayer):
    """`eqx.nn.ConvTranspose1d/2d/3d`, with groups, strides, dilation and output padding.

    Equinox keeps the kernel as `(out, in / groups, *kernel_size)` here too, and runs it as a
    convolution over the input spread out by the stride: what holds for a convolution holds for it.
    Look-alikes are not claimed, since other libraries swap the first two axes.
    """

    known = (
        eqx.nn.ConvTranspose,
        eqx.nn.ConvTranspose1d,
        eqx.nn.ConvTranspose2d,
        eqx.nn.ConvTranspose3d,
    )

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.ConvTranspose) and cls.keeps_layout(leaf)

"""foundax's transposed convolutions: those of its UNets and MgNO."""

from typing import Any

from .._classes import value_for
from .channel_last import ChannelLastKernelLayer

_SPATIAL_DIMS = {
    ("foundax.architectures.unet", "ConvTranspose1d"): 1,
    ("foundax.architectures.unet", "ConvTranspose3d"): 3,
    ("foundax.architectures.common", "ConvTranspose2d"): 2,
}


class ChannelLastConvTransposeLayer(ChannelLastKernelLayer):
    """`ConvTranspose1d`, `ConvTranspose2d` and `ConvTranspose3d` of foundax.

    They allocate their kernel as `(*kernel_size, out, in)`, but the call sums over the last axis
    but one: what it computes with is `(*kernel_size, in, out)`, and the call is the truth. Where
    the two differ in size the layer cannot run at all, and is refused; foundax's own models only
    have such with as many outputs as inputs.
    """

    @classmethod
    def num_spatial_dims(cls, leaf: Any) -> int | None:
        return value_for(leaf, _SPATIAL_DIMS)

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        return super().fits(leaf) and leaf.weight.shape[-1] == leaf.weight.shape[-2]

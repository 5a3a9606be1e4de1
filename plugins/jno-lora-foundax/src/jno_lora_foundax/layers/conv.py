"""foundax's convolutions: those of its UNets, CNO, MgNO and DeepONet."""

from typing import Any

from .._classes import value_for
from .channel_last import ChannelLastKernelLayer

_SPATIAL_DIMS = {
    ("foundax.architectures.unet", "Conv1dNHWC"): 1,
    ("foundax.architectures.unet", "Conv2dNHWC"): 2,
    ("foundax.architectures.unet", "Conv3dNHWC"): 3,
    ("foundax.architectures.common", "Conv2d"): 2,
    ("foundax.architectures.deeponet", "Conv1dCL"): 1,
}


class ChannelLastConvLayer(ChannelLastKernelLayer):
    """`Conv1dNHWC`, `Conv2dNHWC`, `Conv3dNHWC`, `Conv2d` and `Conv1dCL` of foundax.

    Those of Poseidon hold an `eqx.nn.Conv2d`, which the zoo's adapters claim.
    """

    @classmethod
    def num_spatial_dims(cls, leaf: Any) -> int | None:
        return value_for(leaf, _SPATIAL_DIMS)

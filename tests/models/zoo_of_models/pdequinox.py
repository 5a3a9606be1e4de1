"""PDE emulators: pdequinox, whose convolutions subclass `eqx.nn.Conv` with physical padding."""

import pdequinox

from .._model import Model, normal

MODELS = (
    Model(
        "pdequinox-unet-dirichlet",
        lambda key: pdequinox.arch.ClassicUNet(
            2, 2, 3, hidden_channels=4, num_levels=1, boundary_mode="dirichlet", key=key
        ),
        normal((2, 8, 8)),
        layers=8,
    ),
    Model(
        "pdequinox-modern-unet-periodic",
        lambda key: pdequinox.arch.ModernUNet(
            1, 2, 3, hidden_channels=4, num_levels=1, num_blocks=1, key=key
        ),
        normal((2, 16)),
        layers=11,
    ),
    Model(
        "pdequinox-resnet-neumann",
        lambda key: pdequinox.arch.ClassicResNet(
            2, 2, 3, hidden_channels=4, num_blocks=1, boundary_mode="neumann", key=key
        ),
        normal((2, 8, 8)),
        layers=4,
    ),
    Model(
        "pdequinox-dilated-resnet",
        lambda key: pdequinox.arch.DilatedResNet(
            1, 2, 3, hidden_channels=4, num_blocks=1, dilation_rates=(1, 2, 1), key=key
        ),
        normal((2, 16)),
        layers=5,
    ),
    Model(
        "pdequinox-fno",
        lambda key: pdequinox.arch.ClassicFNO(
            1, 2, 3, hidden_channels=4, num_modes=3, num_blocks=2, key=key
        ),
        normal((2, 16)),
        layers=4,
    ),
)

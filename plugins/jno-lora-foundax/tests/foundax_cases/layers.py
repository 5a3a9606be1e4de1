"""One small layer of each class that this plugin adapts, with inputs for it.

Every size differs where the layer allows it, so that no axis passes for another.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from foundax.architectures import common, deeponet, fno, geofno, pcno, unet
from jax_dpot.model_eqx import AFNO2D
from jax_mpp.avit_eqx import SubsampledLinear

from .tools import run, run_spectral, run_strict


@dataclasses.dataclass(frozen=True)
class Layer:
    """How to make a layer and the inputs of a call, and how to call it.

    `outputs` and `inputs` are the sizes of its matrix; of spectral weights `modes` counts the real
    numbers that one entry of it stands for, over all modes.
    """

    make: Callable[[Any], Any]
    data: Callable[[Any], tuple[Any, ...]]
    outputs: int
    inputs: int
    modes: int = 1
    call: Callable[..., Any] = run


def _normal(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    return lambda key: (jax.random.normal(key, shape),)


CONVS = {
    # Without bias a call of foundax keeps to strict promotion: nothing of ours can hide.
    "Conv1dNHWC": Layer(
        lambda key: unet.Conv1dNHWC(3, 5, 4, padding="VALID", use_bias=False, key=key),
        _normal(9, 3),
        5,
        12,
        call=run_strict,
    ),
    "Conv2dNHWC": Layer(
        lambda key: unet.Conv2dNHWC(3, 5, (2, 2), strides=(2, 1), key=key),
        _normal(5, 4, 3),
        5,
        12,
    ),
    "Conv3dNHWC": Layer(
        lambda key: unet.Conv3dNHWC(2, 5, 2, use_bias=False, key=key),
        _normal(3, 4, 3, 2),
        5,
        16,
        call=run_strict,
    ),
    # A batch.
    "Conv2d": Layer(
        lambda key: common.Conv2d(2, 5, (3, 2), key=key),
        _normal(2, 4, 5, 2),
        5,
        12,
    ),
    "Conv1dCL": Layer(lambda key: deeponet.Conv1dCL(4, 5, 3, key=key), _normal(7, 4), 5, 12),
    # foundax's kernels have `in` inputs in each group.
    "grouped": Layer(lambda key: unet.Conv1dNHWC(2, 6, 3, groups=2, key=key), _normal(7, 4), 6, 6),
}
CONV_TRANSPOSES = {
    "ConvTranspose1d": Layer(
        lambda key: unet.ConvTranspose1d(4, 4, 3, use_bias=True, key=key), _normal(5, 4), 4, 12
    ),
    "ConvTranspose2d": Layer(
        lambda key: common.ConvTranspose2d(4, 4, (2, 3), key=key),
        _normal(3, 4, 4),
        4,
        24,
        call=run_strict,
    ),
    "ConvTranspose3d": Layer(
        lambda key: unet.ConvTranspose3d(4, 4, 2, key=key),
        _normal(2, 3, 2, 4),
        4,
        32,
        call=run_strict,
    ),
}


def _labelled(*shape: int, labels: list[int]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda key: (jax.random.normal(key, shape), jnp.array(labels))


SUBSAMPLED = {
    "subsample_in": Layer(
        lambda key: SubsampledLinear(7, 5, key=key), _labelled(2, 3, labels=[0, 2, 6]), 5, 7
    ),
    "subsample_out": Layer(
        lambda key: SubsampledLinear(4, 6, subsample_in=False, key=key),
        _labelled(4, labels=[5, 1, 2]),
        6,
        4,
        call=run_strict,
    ),
}


def _geometric(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    """Features on 6 nodes, and random bases for `shape` modes (and measures)."""

    def data(key: Any) -> tuple[Any, ...]:
        keys = jax.random.split(key, 7)
        constant = (2, 6, 1, *shape[1:])
        shapes = [(2, 6, *shape), (2, 6, *shape), constant] * 2
        bases = [jax.random.normal(k, s) for k, s in zip(keys[1:], shapes, strict=True)]
        return (jax.random.normal(keys[0], (2, 4, 6)), *bases)

    return data


SPECTRAL = {
    "SpectralConv1d": Layer(
        lambda key: fno.SpectralConv1d(4, 5, 3, key=key),
        _normal(8, 4),
        5,
        4,
        2 * 3,
        call=run_spectral,
    ),
    "SpectralConv2d": Layer(
        lambda key: fno.SpectralConv2d(4, 5, 3, 2, key=key),
        _normal(6, 5, 4),
        5,
        4,
        4 * 6,
        call=run_spectral,
    ),
    "SpectralConv3d": Layer(
        lambda key: fno.SpectralConv3d(4, 5, 2, 3, 2, linear_conv=False, key=key),
        _normal(4, 6, 5, 4),
        5,
        4,
        8 * 12,
        call=run_spectral,
    ),
    "SpectralConvGeo": Layer(
        lambda key: geofno.SpectralConvGeo(4, 5, 3, key=key), _geometric(3), 5, 4, 2 * 3 + 1
    ),
    "PCNO": Layer(
        lambda key: pcno.SpectralConv(4, 5, 3, 2, key=key), _geometric(3, 2), 5, 4, 2 * 6 + 2
    ),
    # Two matrices for each block, in -> hidden and hidden -> out.
    "AFNO2D": Layer(
        lambda key: AFNO2D(8, num_blocks=2, modes=3, hidden_size_factor=2, key=key),
        _normal(1, 4, 5, 8),
        8,
        4,
        2 * 2 * 2,
        call=run_spectral,
    ),
}

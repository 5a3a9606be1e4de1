"""What layers compute, in NumPy and float64: loops that follow the definition, and nothing else."""

import itertools
from typing import Any

import numpy as np

# The names that NumPy has for ways of padding.
_PADDING = {
    "ZEROS": "constant",
    "REFLECT": "reflect",
    "REPLICATE": "edge",
    "CIRCULAR": "wrap",
}


def linear(W: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """`y_o = sum_i W_oi x_i + b_o`."""
    y = np.array([sum(W[o, i] * x[i] for i in range(W.shape[1])) for o in range(W.shape[0])])
    return y if bias is None else y + bias


def convolution(layer: Any, W: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """The cross-correlation that `eqx.nn.Conv` is documented to compute.

    `y[o, p] = b[o] + sum over c and k of K[o, c, k] xp[c + first(o), p * stride + k * dilation]`,
    where `xp` is the padded input, and `first(o)` the first channel of the group of output `o`.

    **Arguments:**

    - `layer`: has the settings (strides, padding), of its arrays none is used.
    - `W`: `(out, in / groups * prod(kernel))`.
    """
    kernel = W.reshape(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    xp = np.pad(x, [(0, 0), *_padding(layer, x, reach)], mode=_PADDING[layer.padding_mode])
    sizes = [(n - r) // s + 1 for n, r, s in zip(xp.shape[1:], reach, layer.stride, strict=True)]
    y = np.zeros((layer.out_channels, *sizes))
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    for o in range(layer.out_channels):
        first = o // outputs * inputs
        for place in itertools.product(*map(range, sizes)):
            window = tuple(
                slice(p * s, p * s + r, d)
                for p, s, r, d in zip(place, layer.stride, reach, layer.dilation, strict=True)
            )
            y[(o, *place)] = np.sum(kernel[o] * xp[(slice(first, first + inputs), *window)])
    return y if bias is None else y + bias.reshape(-1, *[1] * len(sizes))


def _padding(layer: Any, x: np.ndarray, reach: list[int]) -> list[tuple[int, int]]:
    """How many places are added before and after each axis."""
    if layer.padding != "SAME":
        return layer.padding
    # As many outputs as inputs (over the stride), with the odd place at the end.
    totals = [
        max((-(-n // s) - 1) * s + r - n, 0)
        for n, s, r in zip(x.shape[1:], layer.stride, reach, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]
